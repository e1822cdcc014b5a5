"""What clients do to records, drawn by chance: commands and reads, and what each means to every record it touches.

A record's value is a number nobody writes twice; it stands in the metadata (``v``, and ``p``: whether it is odd) and
decides the vector of an upsert.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from vecdb.core.filters import Node, parse
from vecdb.core.ids import RecordId
from vecdb.core.query import QueryRequest
from vecdb.core.records import Command, DeleteIds, DeleteWhere, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.testing.linear import NEVER

IDS: Final[tuple[RecordId, ...]] = (0, 1, 2**40, "a", "b/ü", "c")
"""Numbers and strings."""
MANY: Final[tuple[RecordId, ...]] = (*IDS, *range(100, 118))
EVEN, ODD = "p == 0", "p == 1"


def vector_of(value: int, dim: int) -> npt.NDArray[np.float32]:
    """Its components, by the value alone."""
    return np.array([((value * 2_654_435_761 >> 7 * at) % 1_999) / 1_000 - 1 for at in range(dim)], np.float32)


def metadata_of(value: int) -> bytes:
    return orjson.dumps({"v": value, "p": value % 2})


@dataclass(frozen=True, slots=True)
class RecordStep:
    """What one call meant to one record; its value, 0 where it is not there.

    ``kind``: upsert, update (of one that is there), delete, delete_if (``expected`` is its value), delete_even, read.
    ``result``: what a read saw; of others whether they found the record; None where that is not known.
    """

    kind: str
    start: float
    end: float
    value: int = 0
    expected: int = 0
    result: int | None = None

    @property
    def reads(self) -> bool:
        return self.kind == "read"

    def step(self, state: int) -> int | None:
        if self.kind == "read":
            return state if self.result == state else None
        hit = bool(state)
        after = 0
        if self.kind == "upsert":
            after = self.value
        elif self.kind == "update":
            after = self.value if state else 0
        elif self.kind == "delete_if":
            hit = state == self.expected
            after = 0 if hit else state
        elif self.kind == "delete_even":
            after = 0 if state % 2 == 0 else state
        if self.end != NEVER and self.result is not None and bool(self.result) != hit:
            return None
        return after


@dataclass(frozen=True, slots=True)
class Write:
    """A command, and by record what it means: ``(kind, value, expected)``."""

    kind: str
    command: Command
    touched: dict[RecordId, tuple[str, int, int]]

    def found(self, one: RecordId, result: WriteResult) -> int | None:
        """Whether it found the record ``one``; None if the answer does not tell."""
        kind = self.touched[one][0]
        if kind == "delete_even":
            return None
        hits = result.deleted if kind.startswith("delete") else result.updated
        return hits if len(self.touched) == 1 else 1 if hits == len(self.touched) else None if hits else 0


@dataclass(frozen=True, slots=True)
class Read:
    """``kind``: fetch, count or query."""

    kind: str
    ids: tuple[RecordId, ...] = ()
    where: Node | None = None
    request: QueryRequest | None = None


def draw_write(random: Random, ids: Sequence[RecordId], values: Sequence[int], known: Sequence[tuple[RecordId, int]],
               dim: int) -> Write:
    """``values``: that many fresh ones at least; ``known``: records and values that were written lately."""
    kind = random.choices(("upsert", "batch", "delete", "delete_if", "delete_even", "update"), (8, 2, 3, 2, 1, 4))[0]
    one = random.choice(ids)
    if kind == "batch":
        chosen = random.sample(ids, random.randint(2, 3))
        return _upsert(kind, chosen, values, dim)
    if kind == "delete":
        return Write(kind, DeleteIds((one,)), {one: ("delete", 0, 0)})
    if kind == "delete_if" and known:
        one, value = random.choice(known)
        return Write(kind, DeleteWhere(parse(f"v == {value}")), {one: ("delete_if", 0, value)})
    if kind == "delete_even":
        return Write(kind, DeleteWhere(parse(EVEN)), dict.fromkeys(ids, ("delete_even", 0, 0)))
    if kind == "update":
        return Write(kind, UpdateMetadata((one,), (metadata_of(values[0]),)), {one: ("update", values[0], 0)})
    return _upsert("upsert", [one], values, dim)


def _upsert(kind: str, ids: Sequence[RecordId], values: Sequence[int], dim: int) -> Write:
    given = dict(zip(ids, values, strict=False))
    batch = UpsertBatch(tuple(given), np.stack([vector_of(value, dim) for value in given.values()]),
                        tuple(metadata_of(value) for value in given.values()))
    return Write(kind, batch, {one: ("upsert", value, 0) for one, value in given.items()})


def draw_read(random: Random, ids: Sequence[RecordId], dim: int) -> Read:
    kind = random.choices(("fetch", "count", "query"), (5, 1, 3))[0]
    where = random.choice((None, None, ODD, EVEN))
    if kind == "fetch":
        return Read(kind, ids=tuple(random.sample(ids, random.choice((1, 1, 2, len(ids))))))
    if kind == "count":
        return Read(kind, where=None if where is None else parse(where))
    vectors = np.stack([vector_of(random.randrange(1 << 30), dim) for _ in range(random.choice((1, 1, 3)))])
    return Read(kind, request=QueryRequest(vectors, random.choice((1, 3, 10)),
                                           None if where is None else parse(where), exact=random.random() < 0.5,
                                           include_metadata=True))


def value_in(metadata: dict[str, Any]) -> int:
    """The value a record's metadata tells."""
    return int(metadata["v"])
