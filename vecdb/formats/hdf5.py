"""HDF5 in the layout of ann-benchmarks: ``train`` (n, d), the metric in the attribute ``distance``.

1-D datasets as long as ``train`` are columns of metadata; ``train_`` is dropped from their names and those
of the queries (``test_*``, ``query_*``) are left alone.  A bool ``train`` is packed into bits (hamming).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from vecdb.core.errors import Unsupported
from vecdb.core.ids import RecordId
from vecdb.formats.about import MARK, About
from vecdb.formats.base import (
    ID_NAMES,
    Batch,
    SourceOptions,
    bad_file,
    cells,
    check_dim,
    check_vectors,
    file_ids,
    opening,
    row_numbers,
    rows_per_batch,
    writing,
)

METRICS = {"angular": "cosine", "cosine": "cosine", "euclidean": "l2", "l2": "l2", "dot": "dot", "ip": "dot",
           "inner_product": "dot", "hamming": "hamming"}
"""The words of ann-benchmarks (and of its users) for our metrics."""

_NAMES = {"cosine": "angular", "l2": "euclidean", "dot": "dot", "hamming": "hamming"}
_NOT_COLUMNS = ("test", "neighbors", "distances", "query")
_JSON_MARK = "vecdb_json"


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise Unsupported("HDF5 files need h5py: pip install h5py", package="h5py") from None
    return h5py


class Hdf5Source:
    """An HDF5 file with a dataset of vectors."""

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self.path = path
        h5py = _h5py()
        with opening(path):
            path.open("rb").close()
            try:
                self._file = h5py.File(path, "r")
            except OSError as error:
                raise bad_file(path, f"not a readable HDF5 file: {error}", got="bytes", limit="HDF5") from None
        try:
            self._train = self._dataset(options.vector_column or "train", 2)
            self._packed = self._train.dtype == np.bool_
            rows, width = self._train.shape
            self.rows: int | None = int(rows)
            self.dim = check_dim(path, int(width))
            if self._packed and self.dim % 8:
                raise bad_file(path, f"vectors of {self.dim} bits are not whole bytes", got=self.dim, limit="8 | dim")
            self.metric = self._metric()
            self.vector_type = self._vector_type()
            if self.vector_type == "binary" and not self._packed:
                self.dim = check_dim(path, self.dim * 8)
            check_vectors(path, np.empty((0, 1), np.uint8 if self._packed else self._train.dtype), 0)
            self._id, self._columns = self._find_columns(options)
        except BaseException:
            self._file.close()
            raise

    def _dataset(self, name: str, ndim: int) -> Any:
        found = self._file.get(name)
        if found is None or not hasattr(found, "shape"):
            raise bad_file(self.path, f"no dataset {name!r}; it has {', '.join(list(self._file)[:12]) or 'none'}",
                           got="missing", limit=name)
        if len(found.shape) != ndim:
            raise bad_file(self.path, f"{name!r} has shape {found.shape}; {ndim} dimensions are wanted",
                           got=str(found.shape), limit=f"{ndim} dimensions")
        return found

    def _metric(self) -> str | None:
        said = self._file.attrs.get("distance")
        if said is None:
            return None
        word = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        if word not in METRICS:
            raise bad_file(self.path, f"its distance is {word!r}; known are {', '.join(METRICS)}",
                           got=word, limit=", ".join(METRICS))
        return METRICS[word]

    def _vector_type(self) -> str | None:
        if self._packed or self.metric == "hamming":
            return "binary"
        dtype = self._train.dtype
        said = self._file.attrs.get(MARK)
        if isinstance(said, str | bytes):
            told = About.from_bytes(self.path, said)
            if told.row_items == self.dim and told.vector_type != "binary":
                return told.vector_type
        return str(dtype) if dtype.kind in "iu" and dtype.itemsize == 1 else None

    def _find_columns(self, options: SourceOptions) -> tuple[Any, list[tuple[str, Any, bool]]]:
        wanted = options.id_column
        id_name = wanted or next((n for n in ID_NAMES if n in self._file and self._is_column(self._file[n])), None)
        ids = None
        if id_name is not None:
            ids = self._dataset(id_name, 1)
            if len(ids) != self.rows:
                raise bad_file(self.path, f"{id_name!r} has {len(ids)} entries for {self.rows} vectors",
                               got=len(ids), limit=self.rows)
        columns = []
        for name, item in self._file.items():
            if name == id_name or name.startswith(_NOT_COLUMNS) or not self._is_column(item):
                continue
            columns.append((name.removeprefix("train_"), item, bool(item.attrs.get(_JSON_MARK, False))))
        return ids, columns

    def _is_column(self, item: Any) -> bool:
        return hasattr(item, "shape") and item.shape == (self.rows,) and item.dtype.kind in "biufSO"

    def batches(self, size: int | None = None) -> Iterator[Batch]:
        room = rows_per_batch(size, self.dim * self._train.dtype.itemsize)
        for first in range(0, int(self.rows or 0), room):
            stop = min(first + room, int(self.rows or 0))
            block = self._read(self._train, first, stop)
            if self._packed:
                block = np.packbits(block, axis=1)
            vectors = check_vectors(self.path, block, first)
            ids = row_numbers(first, len(vectors)) if self._id is None else file_ids(
                self.path, self._column(self._id, first, stop), first)
            yield Batch(first, ids, vectors, self._metadata(first, stop))

    def _read(self, dataset: Any, first: int, stop: int) -> npt.NDArray[Any]:
        try:
            block: npt.NDArray[Any] = dataset[first:stop]
        except (OSError, ValueError) as error:
            raise bad_file(self.path, f"{dataset.name} cannot be read: {error}", row=first) from None
        return block

    def _column(self, dataset: Any, first: int, stop: int) -> npt.NDArray[Any] | list[Any]:
        block = self._read(dataset, first, stop)
        if block.dtype.kind in "biuf":
            return block
        try:
            return [cell.decode("utf-8") if isinstance(cell, bytes) else cell for cell in block.tolist()]
        except UnicodeDecodeError as error:
            raise bad_file(self.path, f"{dataset.name} is not UTF-8: {error}", row=first) from None

    def _metadata(self, first: int, stop: int) -> list[dict[str, Any]] | None:
        if not self._columns:
            return None
        flat = [(name, item) for name, item, is_json in self._columns if not is_json]
        columns = [self._column(item, first, stop) for _, item in flat]
        listed = [column.tolist() if isinstance(column, np.ndarray) else column for column in columns]
        rows: list[dict[str, Any]] = [{} for _ in range(stop - first)]
        if flat:
            rows = cells(self.path, [name for name, _ in flat], listed, first)
        for name, item, is_json in self._columns:
            if is_json:
                for place, text in enumerate(self._column(item, first, stop)):
                    rows[place].update(json_object(self.path, name, text, first + place))
        return rows

    def close(self) -> None:
        self._file.close()


def json_object(path: Path, name: str, text: Any, row: int) -> dict[str, Any]:
    """Parse one cell of a column that holds metadata as JSON text; null and the empty text are no metadata."""
    if text is None or text == "":
        return {}
    try:
        value = orjson.loads(text)
    except (orjson.JSONDecodeError, TypeError, RecursionError) as error:
        raise bad_file(path, f"{name}: not JSON: {error}", row=row, got="text", limit="a JSON object") from None
    if not isinstance(value, dict):
        raise bad_file(path, f"{name}: a JSON object is wanted, not {type(value).__name__}", row=row,
                       got=type(value).__name__, limit="a JSON object")
    return value


def id_kind(path: Path, ids: Sequence[RecordId]) -> type[int] | type[str]:
    """Return the one kind of ids a column can have, or raise for a batch that has both."""
    kinds = {type(record_id) for record_id in ids}
    if len(kinds) > 1:
        raise bad_file(path, "the collection has integer and string ids, and a column holds one kind; use .jsonl",
                       got="int and str", limit="one kind of id")
    return str if str in kinds else int


class Hdf5Sink:
    """Writes ``train``, ``train_id`` and ``train_metadata`` (JSON texts), growing them a batch at a time."""

    def __init__(self, path: Path, dtype: np.dtype[Any], width: int, about: About) -> None:
        self._h5py = _h5py()
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._rows = 0
        self._ids: Any = None
        self._kind: type[int] | type[str] | None = None
        chunk = max(1, min(1024, (1 << 20) // (width * dtype.itemsize)))
        with writing(path):
            self._file = self._h5py.File(self._part, "w")
            self._file.attrs.update({"type": "dense", "distance": _NAMES[about.metric],
                                     "dimension": width, MARK: about.to_bytes().decode(),
                                     "point_type": "float" if dtype.kind == "f" else "int"})
            self._train = self._file.create_dataset("train", (0, width), dtype, maxshape=(None, width),
                                                    chunks=(chunk, width))
            self._texts = self._file.create_dataset("train_metadata", (0,), self._h5py.string_dtype("utf-8"),
                                                    maxshape=(None,), chunks=(1024,))
            self._texts.attrs[_JSON_MARK] = True

    def write(self, ids: Sequence[RecordId], vectors: npt.NDArray[Any], metadata: Sequence[dict[str, Any]]) -> None:
        kind = id_kind(self._path, ids)
        if self._ids is None:
            self._kind = kind
            self._ids = self._file.create_dataset(
                "train_id", (0,), np.int64 if kind is int else self._h5py.string_dtype("utf-8"),
                maxshape=(None,), chunks=(1024,))
        elif kind is not self._kind:
            id_kind(self._path, [0, ""])
        stop = self._rows + len(ids)
        texts = np.asarray([orjson.dumps(entry).decode() for entry in metadata], object)
        names = np.asarray(ids, np.int64 if kind is int else object)
        with writing(self._path):
            for dataset, values in ((self._train, vectors), (self._ids, names), (self._texts, texts)):
                dataset.resize(stop, axis=0)
                dataset[self._rows:stop] = values
        self._rows = stop

    def close(self) -> None:
        with writing(self._path):
            self._file.close()
            self._part.replace(self._path)

    def abort(self) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)
