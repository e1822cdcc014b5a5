"""Checksummed files of arrays: the form in which sealed segments lie on disk.

A file is written once, never changed, and deleted when nobody reads it any more.  One format serves every
kind of content (vectors, graph, codes, ids, metadata index): named arrays and a small JSON object.

::

    0       page    magic, format version, sizes and places of what follows; xxh3-64 of the page
    4096    payload the arrays, each at a multiple of 4096, so that mapped rows keep 64-byte alignment
    ...     blocks  xxh3-64 of every MiB of the payload
    ...     directory  JSON: kind, arrays (name, dtype, shape, offset), meta

The directory stands at the end because a writer that streams does not know how many rows will come; the page
at the front, written last, says where everything is and how long the file must be.  So a file cut short is
known before anything is mapped, where it would end the process with SIGBUS.

**Damage has an address.**  Hashes are per MiB, not per file: what a flipped byte spoils is one block, and
``bad_rows`` turns it into the rows it holds.  The caller then knows whether to rebuild (graph, codes) or to name the
ids (vectors), while the rest goes on serving.  xxh3 (not a cryptographic hash) runs at tens of GB/s per core, so that
loading stays bound by memory and disk.
"""

from vecdb.segment.files.durable import sync_directory
from vecdb.segment.files.errors import from_os_error
from vecdb.segment.files.medium import MediumReader
from vecdb.segment.files.reader import ArrayFile
from vecdb.segment.files.writer import StreamingWriter, write_arrays

__all__ = ["ArrayFile", "MediumReader", "StreamingWriter", "from_os_error", "sync_directory", "write_arrays"]
