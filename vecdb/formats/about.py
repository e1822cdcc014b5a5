"""What a file's vectors are, where the format itself cannot say: kept beside the file, or inside it if there is room.

``OUT.npy`` tells neither metric nor vector type, and an import that guessed cosine would throw the lengths away.  An
export therefore writes ``OUT.npy.vecdb.json`` beside flat files and JSON lines, and the same object into the schema's
metadata of Parquet and an attribute of HDF5.  Files of others have none of it: then the caller says, or a default is
taken and named.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import orjson

from vecdb.core.ids import RecordId
from vecdb.core.schema import CollectionSchema, VectorType
from vecdb.formats.base import PartFile, Sink, bad_file, opening

MARK: Final = "vecdb"
"""The key of the object in Parquet's schema metadata and HDF5's attributes."""

_LONGEST: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class About:
    """``name``: of the collection exported; ``dim``: components of a vector, bits if binary."""

    name: str
    dim: int
    metric: str
    vector_type: str

    @classmethod
    def of(cls, schema: CollectionSchema) -> Self:
        return cls(schema.name, schema.dim, schema.metric.value, schema.vector_type.value)

    @property
    def row_items(self) -> int:
        """Items of a row as the file has them."""
        return self.dim // 8 if self.vector_type == VectorType.BINARY else self.dim

    def to_bytes(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_bytes(cls, path: Path, data: bytes | str) -> Self:
        """Read what ``path`` says, or raise naming it."""
        try:
            value: Any = orjson.loads(data)
            told = CollectionSchema(value["name"], value["dim"], value["metric"], value["vector_type"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise bad_file(path, f"what it says of its vectors cannot be understood: {error}", got="text",
                           limit="an object with name, dim, metric and vector_type") from None
        return cls.of(told)


def beside(path: Path) -> Path:
    """The name of the file that tells about ``path``."""
    return path.with_name(f"{path.name}.{MARK}.json")


def read_beside(path: Path, width: int) -> About | None:
    """What the file beside ``path`` tells of its vectors of ``width`` items, or None if there is no such file."""
    where = beside(path)
    if not where.is_file():
        return None
    with opening(where), where.open("rb") as stream:
        found = About.from_bytes(where, stream.read(_LONGEST))
    if found.row_items != width:
        raise bad_file(where, f"tells of vectors of {found.row_items} items, {path.name} has {width}: it is of another "
                       "file; remove it", got=found.row_items, limit=width)
    return found


class Noted:
    """A sink with its file beside, which gets its name first: a whole file is never without it."""

    def __init__(self, sink: Sink, path: Path, about: About) -> None:
        self._sink = sink
        try:
            self._note = PartFile(beside(path))
            self._note.write(about.to_bytes() + b"\n")
        except BaseException:
            sink.abort()
            raise

    def write(self, ids: Sequence[RecordId], vectors: npt.NDArray[Any], metadata: Sequence[dict[str, Any]]) -> None:
        self._sink.write(ids, vectors, metadata)

    def close(self) -> None:
        self._note.commit()
        self._sink.close()

    def abort(self) -> None:
        self._sink.abort()
        self._note.abort()


def bits(path: Path, vectors: npt.NDArray[Any], first_row: int) -> npt.NDArray[np.uint8]:
    """Packed bits that a format without bytes holds as other numbers (JSON, ``.fvecs``)."""
    if vectors.dtype == np.uint8:
        return vectors
    wrong = np.flatnonzero(((vectors < 0) | (vectors > 255) | (vectors != np.floor(vectors))).any(axis=1))
    if wrong.size:
        raise bad_file(path, "a component of a binary vector is no byte", row=first_row + int(wrong[0]),
                       got="another number", limit="0..255")
    return vectors.astype(np.uint8)
