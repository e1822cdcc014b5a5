"""The index of a growing segment: columns, appended by one writer while readers search them.

Each path has a :class:`Column` per kind of value; strings are numbered in the order they first appear and the column
holds the numbers.  A condition is one vectorised pass over a column (about a millisecond for a million entries), which
a growing segment's size allows and which needs no structure that changes in place.  Sealing turns the columns into
sorted postings (:mod:`vecdb.metadata.merge`).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from vecdb.core.calls import Call
from vecdb.core.filters.geo import point_of
from vecdb.core.filters.paths import join_path, split_path
from vecdb.core.filters.times import parse_time
from vecdb.core.filters.tree import Compare, Contains, GeoBox, GeoRadius, Leaf, Node, Prefix
from vecdb.core.limits import MAX_INDEXED_FIELDS, MAX_INDEXED_STRING_BYTES
from vecdb.metadata import bits
from vecdb.metadata.columns import Column, ordinals_where, within_box, within_radius
from vecdb.metadata.fields import FieldData, answer, may_match_long, string_test
from vecdb.metadata.intervals import BOOL, DTYPES, FLOAT, INT, TIME, UINT
from vecdb.metadata.rowset import Bounds, RowSet, all_rows, solve

_INT64_MAX = (1 << 63) - 1
_TERM_OVERHEAD_BYTES = 170
"""What a distinct string costs beside its characters: the str object, its number, the slots of a dict and a list."""

_EMPTY = BitMap()


class _Pending:
    """The entries of the batch in hand: ordinals and values side by side, per kind."""

    __slots__ = ("bools", "floats", "ints", "longs", "nulls", "others", "points", "strings", "times")

    def __init__(self) -> None:
        self.ints: tuple[list[int], list[int]] = ([], [])
        self.floats: tuple[list[int], list[float]] = ([], [])
        self.bools: tuple[list[int], list[bool]] = ([], [])
        self.strings: tuple[list[int], list[int]] = ([], [])
        self.times: tuple[list[int], list[int]] = ([], [])
        self.points: tuple[list[int], list[float], list[float]] = ([], [], [])
        self.nulls: tuple[list[int]] = ([],)
        self.longs: tuple[list[int]] = ([],)
        self.others: tuple[list[int]] = ([],)


class _Field:
    """What stands under one path; ``children`` are the keys below it."""

    __slots__ = ("bools", "children", "floats", "indexed", "ints", "keys", "longs", "nulls", "others", "pending",
                 "points", "strings", "term_bytes", "term_ids", "terms", "times", "uints")

    def __init__(self, keys: tuple[str, ...], indexed: bool) -> None:
        self.keys = keys
        self.indexed = indexed
        self.children: dict[str, _Field] = {}
        self.pending = _Pending()
        self.ints = Column(DTYPES[INT])
        self.uints = Column(DTYPES[UINT])
        self.floats = Column(DTYPES[FLOAT])
        self.bools = Column(DTYPES[BOOL])
        self.strings = Column(np.int32)
        self.times = Column(DTYPES[TIME])  # its "ordinals" are numbers of terms
        self.points = Column(np.float64, np.float64)
        self.nulls = Column()
        self.longs = Column()
        self.others = Column()  # objects and lists: the path exists, be there a scalar or not
        self.term_ids: dict[str, int] = {}
        self.terms: list[str] = []
        self.term_bytes = 0

    # -- the writer

    def put_string(self, ordinal: int, text: str) -> None:
        term = self.term_ids.get(text)
        if term is None:
            size = len(text.encode("utf-8"))
            if size > MAX_INDEXED_STRING_BYTES:
                self.pending.longs[0].append(ordinal)
                return
            term = len(self.terms)
            self.terms.append(text)
            self.term_ids[text] = term
            self.term_bytes += size
            unix_ns = parse_time(text)
            if unix_ns is not None:
                self.pending.times[0].append(term)
                self.pending.times[1].append(unix_ns)
        entries = self.pending.strings
        entries[0].append(ordinal)
        entries[1].append(term)

    def publish(self) -> None:
        """Move the pending entries into the columns."""
        pending = self.pending
        fresh = False
        if pending.ints[0]:
            self._publish_integers(*pending.ints)
            fresh = True
        for column, lists in ((self.floats, pending.floats), (self.bools, pending.bools), (self.times, pending.times),
                              (self.strings, pending.strings), (self.points, pending.points),
                              (self.nulls, pending.nulls), (self.longs, pending.longs),
                              (self.others, pending.others)):
            if lists[0]:
                column.extend(*lists)
                fresh = True
        if fresh:
            self.pending = _Pending()

    def _publish_integers(self, ordinals: list[int], values: list[int]) -> None:
        try:
            self.ints.extend(ordinals, np.array(values, dtype=np.int64))
        except OverflowError:  # some are above 2**63 - 1: those have a column of their own
            small = [place for place, value in enumerate(values) if value <= _INT64_MAX]
            large = [place for place, value in enumerate(values) if value > _INT64_MAX]
            for column, places, kind in ((self.ints, small, INT), (self.uints, large, UINT)):
                column.extend([ordinals[place] for place in places],
                              np.array([values[place] for place in places], dtype=DTYPES[kind]))

    # -- readers

    def columns(self) -> tuple[Column, ...]:
        return (self.ints, self.uints, self.floats, self.bools, self.strings, self.points, self.nulls, self.longs,
                self.others)

    def numbers(self, kind: str) -> Column:
        return {INT: self.ints, UINT: self.uints, FLOAT: self.floats, BOOL: self.bools}[kind]


class _View:
    """The entries of a field below ``count``: a :class:`~vecdb.metadata.fields.FieldIndex`."""

    __slots__ = ("count", "field")

    def __init__(self, field: _Field, count: int) -> None:
        self.field = field
        self.count = count

    def _rows(self, column: Column) -> BitMap:
        return bits.from_ordinals(column.view(self.count)[0], self.count)

    def exists(self) -> BitMap:
        return BitMap.union(_EMPTY, *(self._rows(column) for column in self.field.columns() if len(column)))

    def null(self) -> BitMap:
        return self._rows(self.field.nulls)

    def long(self) -> BitMap:
        return self._rows(self.field.longs)

    def between(self, kind: str, low: Any, high: Any) -> BitMap:
        if kind == TIME:
            terms, instants = self.field.times.view(1 << 32)
            return self._of_terms(terms[(instants >= low) & (instants <= high)])
        ordinals, values = self.field.numbers(kind).view(self.count)
        mask = values == low if low == high else (values >= low) & (values <= high)
        return bits.from_ordinals(ordinals_where(ordinals, mask), self.count)

    def among(self, kind: str, values: npt.NDArray[Any]) -> BitMap:
        if kind == TIME:
            terms, instants = self.field.times.view(1 << 32)
            return self._of_terms(terms[np.isin(instants, values)])
        ordinals, held = self.field.numbers(kind).view(self.count)
        return bits.from_ordinals(ordinals_where(ordinals, np.isin(held, values)), self.count)

    def equal_strings(self, texts: list[str]) -> BitMap:
        found = (self.field.term_ids.get(text) for text in texts)
        return self._of_terms(np.array([term for term in found if term is not None], dtype=np.int64))

    def strings(self, leaf: Compare | Prefix | Contains) -> BitMap:
        # The view first: a term is in the list before any entry of the column names it
        ordinals, numbers = self.field.strings.view(self.count)
        terms = self.field.terms[: int(numbers.max()) + 1] if len(numbers) else []
        wanted = np.fromiter(string_test(leaf)(terms), dtype=np.bool_, count=len(terms))
        return bits.from_ordinals(ordinals_where(ordinals, wanted[numbers]), self.count) if terms else BitMap()

    def _of_terms(self, terms: npt.NDArray[Any]) -> BitMap:
        ordinals, numbers = self.field.strings.view(self.count)
        if not len(terms) or not len(numbers):
            return BitMap()
        if len(terms) == 1:
            mask = numbers == terms[0]
        else:
            wanted = np.zeros(max(int(numbers.max()), int(terms.max())) + 1, dtype=np.bool_)
            wanted[terms] = True
            mask = wanted[numbers]
        return bits.from_ordinals(ordinals_where(ordinals, mask), self.count)

    def near(self, leaf: GeoRadius | GeoBox) -> BitMap:
        ordinals, lat, lon = self.field.points.view(self.count)
        mask = within_radius(leaf, lat, lon) if isinstance(leaf, GeoRadius) else within_box(leaf, lat, lon)
        return bits.from_ordinals(ordinals_where(ordinals, mask), self.count)

    def data(self) -> FieldData:
        """Return all entries, for a merge."""
        field, out = self.field, FieldData()
        for kind in (INT, UINT, FLOAT, BOOL):
            column = field.numbers(kind)
            if len(column):
                ordinals, values = column.view(self.count)
                out.numbers[kind] = (ordinals, values)
        if len(field.strings):
            ordinals, numbers = field.strings.view(self.count)
            out.strings = (ordinals, numbers)
            out.terms = [term.encode("utf-8") for term in field.terms[: int(numbers.max(initial=-1)) + 1]]
            terms, instants = field.times.view(len(out.terms))
            if len(terms):
                place = np.full(len(out.terms), -1, dtype=np.int64)
                place[terms] = np.arange(len(terms))
                timed = np.flatnonzero(place[numbers] >= 0)
                out.numbers[TIME] = (ordinals[timed], instants[place[numbers[timed]]])
        if len(field.points):
            ordinals, lat, lon = field.points.view(self.count)
            out.points = (ordinals, lat, lon)
        for name, rows in (("exists", self.exists()), ("null", self.null()), ("long", self.long())):
            out.sets[name] = bits.to_ordinals(rows)
        return out


class GrowingIndex:
    """Index of the metadata of ordinals 0, 1, 2, … as they are appended.

    ``indexed_fields``: the only paths to index (those paths exactly, not what lies below them), or None for all, up to
    ``max_fields``.  One thread appends; any thread may call ``rows`` meanwhile with a count of records that were
    appended before.
    """

    def __init__(self, indexed_fields: Sequence[str] | None = None, *, max_fields: int = MAX_INDEXED_FIELDS) -> None:
        self.only = None if indexed_fields is None else tuple(
            dict.fromkeys(join_path(split_path(path)) for path in indexed_fields))
        self._max_fields = max_fields
        self._fields: list[_Field] = []
        self._root = _Field((), indexed=False)
        self._overflow = Column()
        for path in self.only or ():
            self._plant(split_path(path))

    def _plant(self, keys: tuple[str, ...]) -> None:
        at = self._root
        for depth, key in enumerate(keys, 1):
            at = at.children.setdefault(key, _Field(keys[:depth], indexed=False))
        at.indexed = True
        self._fields.append(at)

    # -- the writer

    def append(self, first_ordinal: int, metadatas: Sequence[dict[str, Any]]) -> None:
        """Index the metadata (parsed JSON, only read) of ``first_ordinal`` and those after it."""
        dropped: list[int] = []
        for ordinal, metadata in enumerate(metadatas, first_ordinal):
            if metadata and self._object(metadata, self._root, ordinal):
                dropped.append(ordinal)
        for field in self._fields:
            field.publish()
        if dropped:
            self._overflow.extend(dropped)

    def _object(self, metadata: dict[str, Any], parent: _Field, ordinal: int) -> bool:
        """Index one object; return whether it holds a path that found no room."""
        dropped = False
        children = parent.children
        for key, value in metadata.items():
            field = children.get(key)
            if field is None:
                if self.only is not None:
                    continue
                if len(self._fields) >= self._max_fields:
                    dropped = True
                    continue
                field = _Field((*parent.keys, key), indexed=True)
                self._fields.append(field)
                children[key] = field
            kind = type(value)
            if not field.indexed:
                if kind is dict:
                    dropped |= self._object(value, field, ordinal)
                elif kind is list:
                    for item in value:
                        if type(item) is dict:
                            dropped |= self._object(item, field, ordinal)
            elif kind is str:
                field.put_string(ordinal, value)
            elif kind is int:
                entries = field.pending.ints
                entries[0].append(ordinal)
                entries[1].append(value)
            else:
                dropped |= self._value(value, field, ordinal)
        return dropped

    def _value(self, value: Any, field: _Field, ordinal: int, *, element: bool = False) -> bool:
        """Index one value of an indexed field; lists are opened one level."""
        kind, pending = type(value), field.pending
        if kind is float:
            pending.floats[0].append(ordinal)
            pending.floats[1].append(value)
        elif kind is bool:
            pending.bools[0].append(ordinal)
            pending.bools[1].append(value)
        elif value is None:
            pending.nulls[0].append(ordinal)
        elif kind is str:
            field.put_string(ordinal, value)
        elif kind is int:
            pending.ints[0].append(ordinal)
            pending.ints[1].append(value)
        elif kind is dict:
            pending.others[0].append(ordinal)
            point = point_of(value)
            if point is not None:
                pending.points[0].append(ordinal)
                pending.points[1].append(point[0])
                pending.points[2].append(point[1])
            return self._object(value, field, ordinal)
        elif not element:
            pending.others[0].append(ordinal)
            dropped = False
            for item in value:
                dropped |= self._value(item, field, ordinal, element=True)
            return dropped
        return False

    # -- readers

    def rows(self, node: Node, count: int, call: Call | None = None) -> RowSet:
        """Return the rows below ``count`` that match ``node``; raises what ends ``call``."""
        return solve(node, lambda leaf: self._leaf(leaf, count), count, call)

    def _leaf(self, leaf: Leaf, count: int) -> Bounds:
        field = self._find(leaf.path)
        if field is None:
            return Bounds.unsure(BitMap(), self.unknown(leaf.path, count))
        view = _View(field, count)
        return Bounds.unsure(answer(view, leaf), view.long() if may_match_long(leaf) else _EMPTY)

    def _find(self, path: str) -> _Field | None:
        field: _Field | None = self._root
        for key in split_path(path):
            field = field.children.get(key) if field is not None else None
        return field if field is not None and field.indexed else None

    def unknown(self, path: str, count: int) -> BitMap:
        """Return the rows below ``count`` that may have values under a path that has no field here."""
        if self.only is not None:
            return BitMap() if join_path(split_path(path)) in self.only else all_rows(count)
        return bits.from_ordinals(self._overflow.view(count)[0], count)

    def fields(self, count: int) -> Iterator[tuple[str, FieldData]]:
        """Yield each indexed path and its entries below ``count``, for a merge."""
        for field in list(self._fields):
            yield join_path(field.keys), _View(field, count).data()

    def memory_bytes(self) -> int:
        """Return the bytes held, strings included (estimated from their sizes)."""
        total = self._overflow.nbytes
        for field in list(self._fields):
            total += sum(column.nbytes for column in (*field.columns(), field.times))
            total += field.term_bytes + _TERM_OVERHEAD_BYTES * len(field.terms)
        return total
