"""Which reader and writer a file's name asks for."""

from pathlib import Path
from typing import Any

import numpy as np

from vecdb.core.schema import CollectionSchema, VectorType
from vecdb.formats.about import About, Noted
from vecdb.formats.base import Sink, Source, SourceOptions, bad_file

SUFFIXES = (".hdf5", ".h5", ".parquet", ".npy", ".fvecs", ".bvecs", ".ivecs", ".jsonl", ".ndjson")
"""The names of files that can be read."""

_BESIDE = (".npy", ".fvecs", ".bvecs", ".ivecs")


def open_source(path: Path, options: SourceOptions | None = None) -> Source:
    """Open a file of vectors by its name; the reader's module (and its libraries) is imported only now."""
    options = options or SourceOptions()
    suffix = path.suffix.lower()
    if options.metadata_path is not None and suffix not in _BESIDE:
        raise bad_file(path, f"a {suffix or 'nameless'} file holds its metadata itself; a file of metadata goes "
                       f"beside {', '.join(_BESIDE)}", got=str(options.metadata_path), limit="none")
    if suffix in (".hdf5", ".h5"):
        from vecdb.formats.hdf5 import Hdf5Source
        return Hdf5Source(path, options)
    if suffix == ".parquet":
        from vecdb.formats.parquet import ParquetSource
        return ParquetSource(path, options)
    if suffix in (".jsonl", ".ndjson"):
        from vecdb.formats.jsonl import JsonlSource
        return JsonlSource(path, options)
    if suffix in _BESIDE:
        from vecdb.formats.flatfiles import NpySource, VecsSource
        return NpySource(path, options) if suffix == ".npy" else VecsSource(path, options)
    raise _unknown(path)


def open_sink(path: Path, schema: CollectionSchema) -> Sink:
    """Create a file for the records of a collection; its name says the format."""
    suffix = path.suffix.lower()
    dtype: np.dtype[Any] = np.dtype(np.uint8 if schema.vector_type is VectorType.BINARY else schema.vector_type.value)
    width, about = schema.row_items, About.of(schema)
    if suffix in (".jsonl", ".ndjson"):
        from vecdb.formats.jsonl import JsonlSink
        return Noted(JsonlSink(path), path, about)
    if suffix == ".parquet":
        from vecdb.formats.parquet import ParquetSink
        return ParquetSink(path, dtype, width, about)
    if suffix in (".hdf5", ".h5"):
        from vecdb.formats.hdf5 import Hdf5Sink
        return Hdf5Sink(path, dtype, width, about)
    if suffix in (".npy", ".fvecs", ".bvecs"):
        from vecdb.formats.flatfiles import NpySink, VecsSink
        flat = NpySink(path, dtype, width) if suffix == ".npy" else VecsSink(path, dtype, width)
        return Noted(flat, path, about)
    raise _unknown(path)


def _unknown(path: Path) -> Exception:
    return bad_file(path, f"a name ending in {path.suffix or 'nothing'} says no known format; known are "
                    f"{', '.join(SUFFIXES)}", got=path.suffix, limit=", ".join(SUFFIXES))
