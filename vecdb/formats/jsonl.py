"""JSON lines: records with vectors, or only ids and metadata beside a file of vectors.

A line is ``{"id": ..., "vector": [...], "metadata": {...}}``.  Keys other than the id, the vector and
``metadata`` are metadata too, so ``{"id": 7, "vector": [...], "year": 1999}`` means what it looks like.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from vecdb.core.ids import RecordId
from vecdb.core.limits import MAX_DIM, MAX_METADATA_BYTES
from vecdb.formats.about import bits, read_beside
from vecdb.formats.base import (
    ID_NAMES,
    VECTOR_NAMES,
    Batch,
    PartFile,
    SourceOptions,
    bad_file,
    check_dim,
    check_file_id,
    opening,
    rows_per_batch,
)

MAX_LINE_BYTES = 8 * MAX_METADATA_BYTES + 32 * MAX_DIM
"""Longest line: metadata with every character escaped, and 32 characters for each component."""


def lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(line number from 1, object)``; empty lines are skipped, anything but an object is refused."""
    with opening(path), path.open("rb") as stream:
        number = 0
        while raw := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES:
                raise bad_file(path, f"longer than {MAX_LINE_BYTES} bytes", line=number,
                               got="a longer line", limit=MAX_LINE_BYTES)
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            try:
                value = orjson.loads(raw)
            except (orjson.JSONDecodeError, RecursionError) as error:
                raise bad_file(path, f"not JSON: {error}", line=number, got="text", limit="a JSON object") from None
            if not isinstance(value, dict):
                raise bad_file(path, f"a JSON object is wanted, not {type(value).__name__}", line=number,
                               got=type(value).__name__, limit="a JSON object")
            yield number, value


def split(path: Path, line: int, value: dict[str, Any],
          id_column: str | None) -> tuple[RecordId | None, dict[str, Any]]:
    """Take the id and the metadata out of a line whose vector, if any, is out already."""
    name = id_column if id_column is not None else next((n for n in ID_NAMES[:2] if n in value), None)
    record_id: RecordId | None = None
    if name is not None:
        if name not in value:
            raise bad_file(path, f"no key {name!r} for the id", line=line, got="missing", limit=name)
        record_id = check_file_id(path, value.pop(name), line=line)
    nested = value.get("metadata")
    if isinstance(nested, dict):
        del value["metadata"]
        return record_id, {**value, **nested} if value else nested
    if nested is None and "metadata" in value:
        del value["metadata"]
    return record_id, value


class JsonlSource:
    """A JSONL file whose lines hold vectors."""

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self.path = path
        self.rows: int | None = None
        self.metric: str | None = None
        self.vector_type: str | None = None
        self._options = options
        self._vector_name, self._width = self._look()
        self.dim = self._width
        told = read_beside(path, self._width)
        if told is not None:
            self.dim, self.metric, self.vector_type = told.dim, told.metric, told.vector_type

    def _look(self) -> tuple[str, int]:
        """The vector's key and width, from the first record."""
        for number, value in lines(self.path):
            name = self._options.vector_column or next((n for n in VECTOR_NAMES if n in value), None)
            if name is None or name not in value:
                wanted = self._options.vector_column or " or ".join(VECTOR_NAMES)
                raise bad_file(self.path, f"no vector: none of its keys is {wanted}", line=number,
                               got=", ".join(list(value)[:8]), limit=wanted)
            return name, check_dim(self.path, len(self._vector(number, value, name)))
        raise bad_file(self.path, "holds no records", got="an empty file", limit="one JSON object a line")

    def _vector(self, number: int, value: dict[str, Any], name: str) -> list[Any]:
        vector = value.pop(name, None)
        if not isinstance(vector, list):
            raise bad_file(self.path, f"{name!r} must be a list of numbers, not {type(vector).__name__}", line=number,
                           got=type(vector).__name__, limit="list of numbers")
        return vector

    def batches(self, size: int | None = None) -> Iterator[Batch]:
        room = rows_per_batch(size, 4 * self._width)
        ids: list[RecordId] = []
        metadata: list[dict[str, Any]] = []
        vectors = np.empty((room, self._width), dtype=np.float32)
        first = 0
        for number, value in lines(self.path):
            vector = self._vector(number, value, self._vector_name)
            vectors[len(ids)] = self._numbers(number, vector)
            record_id, entry = split(self.path, number, value, self._options.id_column)
            ids.append(first + len(ids) if record_id is None else record_id)
            metadata.append(entry)
            if len(ids) == room:
                yield Batch(first, ids, self._stored(vectors, first), metadata)
                first += room
                ids, metadata, vectors = [], [], np.empty((room, self._width), dtype=np.float32)
        if ids:
            yield Batch(first, ids, self._stored(vectors[:len(ids)], first), metadata)

    def _stored(self, vectors: npt.NDArray[np.float32], first: int) -> npt.NDArray[Any]:
        return bits(self.path, vectors, first) if self.vector_type == "binary" else vectors

    def _numbers(self, number: int, vector: list[Any]) -> npt.NDArray[np.float32]:
        if len(vector) != self._width:
            raise bad_file(self.path, f"the vector has {len(vector)} components, the first one has {self._width}",
                           line=number, got=len(vector), limit=self._width)
        for item in vector:
            # A bool is an int to Python, a string of digits a number to NumPy: neither is a component.
            if type(item) is not float and type(item) is not int:
                raise bad_file(self.path, f"a component is {type(item).__name__}, not a number", line=number,
                               got=type(item).__name__, limit="number")
        with np.errstate(over="ignore"):
            array = np.asarray(vector, dtype=np.float32)
        if not math.isfinite(float(np.sum(array, dtype=np.float64))):
            raise bad_file(self.path, "a component is beyond float32", line=number, got="overflow", limit="float32")
        return array

    def close(self) -> None:
        """Nothing stays open between batches' ends."""


class Beside:
    """Ids and metadata for a file of vectors: the line numbers of the JSONL are the rows of the file."""

    def __init__(self, path: Path, id_column: str | None, owner: Path) -> None:
        self._path = path
        self._owner = owner
        self._id_column = id_column
        self._lines = lines(path)
        self._has_ids: bool | None = None

    def take(self, first_row: int, count: int) -> tuple[list[RecordId], list[dict[str, Any]]]:
        """Return the next ``count`` rows; a shorter file is an error that names where it ended."""
        ids: list[RecordId] = []
        metadata: list[dict[str, Any]] = []
        for place in range(count):
            found = next(self._lines, None)
            if found is None:
                raise bad_file(self._path, f"ends after {first_row + place} records, {self._owner} has more",
                               row=first_row + place, got=first_row + place, limit="one line a vector")
            number, value = found
            record_id, entry = split(self._path, number, value, self._id_column)
            if self._has_ids is None:
                self._has_ids = record_id is not None
            if self._has_ids != (record_id is not None):
                raise bad_file(self._path, "some lines have an id and some have none", line=number,
                               got="mixed", limit="an id on every line, or on none")
            ids.append(first_row + place if record_id is None else record_id)
            metadata.append(entry)
        return ids, metadata

    def finish(self, rows: int) -> None:
        """Raise if there are more lines than vectors."""
        extra = next(self._lines, None)
        if extra is not None:
            raise bad_file(self._path, f"has more records than the {rows} vectors of {self._owner}", line=extra[0],
                           got="more lines", limit=rows)


class JsonlSink:
    """Writes records as JSON lines; with ``vectors=False`` only ids and metadata."""

    def __init__(self, path: Path, *, vectors: bool = True) -> None:
        self._file = PartFile(path)
        self._vectors = vectors

    def write(self, ids: Sequence[RecordId], vectors: npt.NDArray[Any], metadata: Sequence[dict[str, Any]]) -> None:
        out = bytearray()
        # float16 has no JSON form in orjson, and float32 holds it exactly.
        rows = vectors.astype(np.float32) if vectors.dtype == np.float16 else np.ascontiguousarray(vectors)
        for place, record_id in enumerate(ids):
            entry: dict[str, Any] = {"id": record_id}
            if self._vectors:
                entry["vector"] = rows[place]
            entry["metadata"] = metadata[place]
            out += orjson.dumps(entry, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
        self._file.write(out)

    def close(self) -> None:
        self._file.commit()

    def abort(self) -> None:
        self._file.abort()
