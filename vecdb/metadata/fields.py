"""What an index knows of one path, and how a condition on it is asked: shared by growing and sealed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from vecdb.core.filters.tree import (
    Compare,
    Contains,
    Exists,
    GeoBox,
    GeoRadius,
    In,
    IsNull,
    Leaf,
    Op,
    Prefix,
    Time,
    Value,
)
from vecdb.core.limits import MAX_INDEXED_STRING_BYTES
from vecdb.metadata.bits import Ordinals
from vecdb.metadata.intervals import BOOL, DTYPES, NUMBERS, TIME, interval


class FieldIndex(Protocol):
    """The questions a path's index answers; every answer is a new bitmap or one never changed."""

    def exists(self) -> BitMap: ...
    def null(self) -> BitMap: ...
    def between(self, kind: str, low: Any, high: Any) -> BitMap: ...
    def among(self, kind: str, values: npt.NDArray[Any]) -> BitMap: ...
    def equal_strings(self, texts: list[str]) -> BitMap: ...
    def strings(self, leaf: "Compare | Prefix | Contains") -> BitMap: ...
    def near(self, leaf: GeoRadius | GeoBox) -> BitMap: ...


@dataclass(slots=True)
class FieldData:
    """All entries of one path, as a merge reads them.

    ``numbers``: per kind (ordinals, values).  ``strings``: ordinals and the number of each one's term in ``terms``
    (UTF-8, distinct, any order).  ``points``: ordinals, latitudes, longitudes.  ``sets``: ordinals per set of rows:
    ``exists``, ``null``, ``long`` (a string too long to index), ``unsure`` (the path's values are not known).
    """

    numbers: dict[str, tuple[Ordinals, npt.NDArray[Any]]] = field(default_factory=dict)
    strings: tuple[Ordinals, npt.NDArray[Any]] | None = None
    terms: list[bytes] = field(default_factory=list)
    points: tuple[Ordinals, npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = None
    sets: dict[str, Ordinals] = field(default_factory=dict)


SETS = ("exists", "null", "long", "unsure")


def answer(index: FieldIndex, leaf: Leaf) -> BitMap:
    """Return the rows of one path's index that surely match a condition on the path."""
    match leaf:
        case Exists():
            return index.exists()
        case IsNull():
            return index.null()
        case Compare(_, op, value):
            return _compare(index, leaf, op, value)
        case In(_, values):
            return _among(index, values)
        case GeoRadius() | GeoBox():
            return index.near(leaf)
    return index.strings(leaf)


def _compare(index: FieldIndex, leaf: Compare, op: Op, value: Value) -> BitMap:
    if isinstance(value, str):
        return index.equal_strings([value]) if op is Op.EQ else index.strings(leaf)
    if value is None or isinstance(value, bool):
        if op is not Op.EQ:
            return BitMap()
        return index.null() if value is None else index.between(BOOL, int(value), int(value))
    if isinstance(value, Time):
        kinds, number = (TIME,), value.unix_ns
    else:
        kinds, number = NUMBERS, value  # type: ignore[assignment]
    found = BitMap()
    for kind in kinds:
        ends = interval(kind, op, number)
        if ends is not None:
            found |= index.between(kind, *ends)
    return found


def _among(index: FieldIndex, values: tuple[Value, ...]) -> BitMap:
    found = BitMap()
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    instants = [value.unix_ns for value in values if isinstance(value, Time)]
    for kinds, wanted in ((NUMBERS, numbers), ((TIME,), instants)):
        for kind in kinds if wanted else ():
            ends = (interval(kind, Op.EQ, number) for number in wanted)
            exact = [end[0] for end in ends if end is not None]
            if exact:
                found |= index.among(kind, np.unique(np.array(exact, dtype=DTYPES[kind])))
    texts = sorted({value for value in values if isinstance(value, str)})
    if texts:
        found |= index.equal_strings(texts)
    if any(value is None for value in values):
        found |= index.null()
    for flag in (False, True):
        if any(value is flag for value in values):
            found |= index.between(BOOL, int(flag), int(flag))
    return found


def may_match_long(leaf: Leaf) -> bool:
    """Whether a string too long to be indexed might satisfy ``leaf``."""
    match leaf:
        case Prefix() | Contains():
            return True
        case Compare(_, op, value):
            return isinstance(value, str) and (op is not Op.EQ or _is_long(value))
        case In(_, values):
            return any(isinstance(value, str) and _is_long(value) for value in values)
    return False


def _is_long(text: str) -> bool:
    return len(text.encode("utf-8")) > MAX_INDEXED_STRING_BYTES


def string_test(leaf: Compare | Prefix | Contains) -> Callable[[list[str]], Iterator[bool]]:
    """Return what says of each of many strings whether it satisfies ``leaf`` (an order, a prefix, a substring)."""
    if isinstance(leaf, Prefix):
        start = leaf.text
        return lambda terms: (term.startswith(start) for term in terms)
    if isinstance(leaf, Contains):
        part = leaf.text
        return lambda terms: (part in term for term in terms)
    bound = leaf.value
    assert isinstance(bound, str)
    match leaf.op:
        case Op.LT:
            return lambda terms: (term < bound for term in terms)
        case Op.LE:
            return lambda terms: (term <= bound for term in terms)
        case Op.GT:
            return lambda terms: (term > bound for term in terms)
        case Op.GE:
            return lambda terms: (term >= bound for term in terms)
    return lambda terms: (term == bound for term in terms)
