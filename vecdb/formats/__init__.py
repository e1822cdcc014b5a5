"""Files of vectors, read and written in batches.

How it works: :func:`open_source` looks at the name of a file and returns a :class:`~vecdb.formats.base.Source`
that knows the width of its vectors and, where the format says so, the number of rows and the metric.
``Source.batches(size)`` then yields :class:`~vecdb.formats.base.Batch` values; no reader holds more than a
batch (and the decoder's own block) in memory.  :func:`open_sink` is the way back.

======================  =========================================================================================
``.hdf5 .h5``           ann-benchmarks: ``train`` (n, d), metric in ``attrs["distance"]``; 1-D datasets as long as
                        ``train`` are metadata (``train_`` is dropped from their names; ``test_*`` is left alone)
``.parquet``            one column of lists (fixed or not) is the vector, the others are metadata
``.npy``                (n, d), mapped; ids and metadata in a JSONL beside it
``.fvecs .bvecs``       the TEXMEX layout: int32 d, then d float32 / uint8, per row; ``.ivecs`` likewise with int32
``.jsonl .ndjson``      one object a line: id, vector, and metadata either under ``metadata`` or as the other keys
======================  =========================================================================================

Decisions:

- Files are hostile input.  Every refusal is :class:`~vecdb.core.errors.InvalidArgument` whose message names the
  file and the row (rows count from 0, lines of text from 1); nothing is ever unpickled.
- A record without an id gets its row number, so that importing the same file twice replaces and never doubles.
- In columnar files a null or NaN cell of metadata means that the record lacks the key: that is how columns say
  "absent".  In JSONL an explicit null stays one.
- Metric and vector type travel with an export (:mod:`~vecdb.formats.about`): in the schema of Parquet, in the
  attributes of HDF5, in ``NAME.vecdb.json`` beside the others, which say neither.
- Metadata is exported as one JSON text per record (marked as such, and read back as objects): a column per key
  would need to know all keys and their types before the first row, and could not hold a key with two types.
- pyarrow and h5py are imported when such a file is opened, not before: they cost a third of a second together.
"""

from vecdb.formats.base import Batch, Sink, Source, SourceOptions
from vecdb.formats.detect import SUFFIXES, open_sink, open_source

__all__ = ["SUFFIXES", "Batch", "Sink", "Source", "SourceOptions", "open_sink", "open_source"]
