"""Sets of rows with bounds, so that what an index does not hold costs checks only where it may matter.

A leaf on a path that is not (wholly) indexed has no exact answer but two: the rows that surely match, and the rows
that may.  ``and``, ``or`` and ``not`` work on both bounds; where they meet at the end the answer is exact, and only the
rows between them must be asked by :func:`vecdb.core.filters.evaluate`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pyroaring import BitMap

from vecdb.core.calls import Call, check
from vecdb.core.filters.tree import And, Everything, Leaf, Node, Not, Or


@dataclass(frozen=True, slots=True, eq=False)
class RowSet:
    """Rows that match a filter.

    ``bitmap``: every match is in it (owned by the caller).  ``residual``: None if all of ``bitmap`` matches; else the
    filter to be asked about each row of ``bitmap`` that is not in ``sure``.
    """

    bitmap: BitMap
    residual: Node | None
    sure: BitMap


@dataclass(frozen=True, slots=True, eq=False)
class Bounds:
    """``lower`` ⊆ the matches ⊆ ``upper``; the same object where the answer is exact.  Never changed in place."""

    lower: BitMap
    upper: BitMap

    @classmethod
    def exactly(cls, rows: BitMap) -> "Bounds":
        return cls(rows, rows)

    @classmethod
    def unsure(cls, rows: BitMap, maybe: BitMap) -> "Bounds":
        """Surely ``rows``, perhaps ``maybe`` as well."""
        return cls(rows, rows | maybe) if maybe else cls(rows, rows)

    @property
    def exact(self) -> bool:
        return self.lower is self.upper


def all_rows(count: int) -> BitMap:
    """Return the ordinals below ``count``."""
    return BitMap(range(count))


def solve(node: Node, leaf: Callable[[Leaf], Bounds], count: int, call: Call | None = None) -> RowSet:
    """Return the rows below ``count`` that match ``node``; ``leaf`` answers for one condition.

    Raises what ends ``call``, which is looked at before each condition.
    """
    if call is not None:
        leaf = _watched(leaf, call)
    bounds = _solve(node, leaf, count)
    upper = bounds.upper.copy()
    if bounds.exact or len(bounds.lower) == len(upper):
        return RowSet(upper, None, upper)
    return RowSet(upper, node, bounds.lower.copy())


def _watched(leaf: Callable[[Leaf], Bounds], call: Call) -> Callable[[Leaf], Bounds]:
    def answer(condition: Leaf) -> Bounds:
        check(call)
        return leaf(condition)
    return answer


def _solve(node: Node, leaf: Callable[[Leaf], Bounds], count: int) -> Bounds:
    match node:
        case Everything():
            return Bounds.exactly(all_rows(count))
        case Not(inner):
            part = _solve(inner, leaf, count)
            if part.exact:
                return Bounds.exactly(part.lower.flip(0, count))
            return Bounds(part.upper.flip(0, count), part.lower.flip(0, count))
        case And(nodes):
            return _and(nodes, leaf, count)
        case Or(nodes):
            parts = [_solve(part, leaf, count) for part in nodes]
            upper = BitMap.union(*(part.upper for part in parts)) if parts else BitMap()
            if all(part.exact for part in parts):
                return Bounds.exactly(upper)
            return Bounds(BitMap.union(*(part.lower for part in parts)), upper)
    return leaf(node)


def _and(nodes: tuple[Node, ...], leaf: Callable[[Leaf], Bounds], count: int) -> Bounds:
    whole: Bounds | None = None
    for node in nodes:
        part = _solve(node, leaf, count)
        if whole is None:
            whole = part
        elif whole.exact and part.exact:
            whole = Bounds.exactly(whole.lower & part.lower)
        else:
            whole = Bounds(whole.lower & part.lower, whole.upper & part.upper)
        if not whole.upper:
            return Bounds.exactly(whole.upper)
    return whole or Bounds.exactly(all_rows(count))
