"""The index of a sealed segment: immutable sorted postings, read where they lie.

Each path has postings per kind of value: numbers under their sorted distinct values, times likewise as
instants beside their strings, strings under a sorted term dictionary (UTF-8, whose byte order is that of code
points), points sorted by latitude.  So equality is a binary search, an order or a prefix a slice, and a substring one
scan of the dictionary's bytes.  The buffer may be a mapped file; a field is checked and decoded when it is first
asked about.
"""

from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from vecdb.core.calls import Call
from vecdb.core.filters.paths import join_path, split_path
from vecdb.core.filters.tree import Compare, Contains, GeoBox, GeoRadius, Leaf, Node, Op, Prefix
from vecdb.metadata import bits, postings
from vecdb.metadata.columns import ordinals_where, within_box, within_radius
from vecdb.metadata.fields import SETS, FieldData, answer, may_match_long
from vecdb.metadata.intervals import BOOL, DTYPES, FLOAT, INT, TIME, UINT
from vecdb.metadata.layout import Arrays, Container, finite
from vecdb.metadata.postings import Postings
from vecdb.metadata.rowset import Bounds, RowSet, all_rows, solve

SEPARATOR = b"\xff"
"""Behind each term: no byte of UTF-8, and above all of them, so no term or substring reaches over it."""

OVERFLOW_REGION = "overflow"
FIELD_PREFIX = "field:"
_KINDS = (INT, UINT, FLOAT, BOOL, TIME)
_METRES_PER_DEGREE_LEAST = 110_000.0
"""A degree of latitude is 111,195 m on the sphere; less here only widens the band that is looked at."""


class _Terms:
    """A sorted dictionary: term i is ``blob[at[i]:at[i + 1] - 1]``."""

    __slots__ = ("at", "blob")

    def __init__(self, blob: npt.NDArray[np.uint8], at: npt.NDArray[np.integer]) -> None:
        if not postings.rising(at, len(blob)) or (len(at) > 1 and not bool((at[1:] > at[:-1]).all())):
            raise ValueError("the term dictionary is not well formed")
        self.blob = blob.data
        self.at = at

    def __len__(self) -> int:
        return len(self.at) - 1

    def term(self, number: int) -> bytes:
        return bytes(self.blob[int(self.at[number]) : int(self.at[number + 1]) - 1])

    def all(self) -> list[bytes]:
        return bytes(self.blob).split(SEPARATOR)[: len(self)]

    def first_at_least(self, text: bytes) -> int:
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self.term(middle) < text:
                low = middle + 1
            else:
                high = middle
        return low

    def find(self, texts: list[bytes]) -> npt.NDArray[np.int64]:
        """Return the numbers of those of ``texts`` that are terms."""
        found: list[int] = []
        if len(texts) * 64 > len(self):  # a search costs about 64 times what a step over the whole list does
            wanted = set(texts)
            found = [number for number, term in enumerate(self.all()) if term in wanted]
        else:
            for text in texts:
                number = self.first_at_least(text)
                if number < len(self) and self.term(number) == text:
                    found.append(number)
        return np.array(found, dtype=np.int64)

    def containing(self, part: bytes) -> npt.NDArray[np.int64]:
        """Return the numbers of the terms that hold ``part`` (not empty)."""
        hits: list[int] = []
        blob = bytes(self.blob)  # a copy, because bytes.find is many times quicker than re over a view
        hit = blob.find(part)
        while hit >= 0:
            hits.append(hit)
            hit = blob.find(part, blob.find(SEPARATOR, hit))
        return np.searchsorted(self.at, np.array(hits, dtype=self.at.dtype), side="right").astype(np.int64) - 1


class _Field:
    """One path's postings: a :class:`~vecdb.metadata.fields.FieldIndex` over a region's arrays."""

    def __init__(self, arrays: Arrays, count: int) -> None:
        self.count = count
        self.values: dict[str, npt.NDArray[Any]] = {}
        self.postings: dict[str, Postings] = {}
        for kind in _KINDS:
            if f"{kind}.values" in arrays:
                values = arrays[f"{kind}.values"]
                if values.dtype != DTYPES[kind]:
                    raise ValueError(f"{kind} values of dtype {values.dtype}")
                self.values[kind] = values
                self.postings[kind] = postings.read(arrays, kind, len(values), count)
        self.terms: _Terms | None = None
        if "str.at" in arrays:
            self.terms = _Terms(arrays["str.terms"], arrays["str.at"])
            self.postings["str"] = postings.read(arrays, "str", len(self.terms), count)
        self.points: tuple[npt.NDArray[Any], ...] | None = None
        if "geo.lat" in arrays:
            self.points = arrays["geo.ordinals"], arrays["geo.lat"], arrays["geo.lon"]
            rows, lat, lon = self.points
            if not (len(rows) == len(lat) == len(lon) and finite(lat) and finite(lon)
                    and (not len(rows) or int(rows.max()) < count)):
                raise ValueError("the points are not well formed")
        self.sets = {name: bits.load(arrays[name], count) for name in SETS if name in arrays}

    def set_of(self, name: str) -> BitMap:
        """Return a set of rows, never to be changed."""
        return self.sets.get(name) or BitMap()

    def bitmaps(self) -> list[BitMap]:
        """Return all bitmaps held in memory."""
        return [*self.sets.values(), *(rows for held in self.postings.values() for rows in held.bitmaps)]

    def exists(self) -> BitMap:
        return self.set_of("exists")

    def null(self) -> BitMap:
        return self.set_of("null")

    def between(self, kind: str, low: Any, high: Any) -> BitMap:
        values = self.values.get(kind)
        if values is None:
            return BitMap()
        # The bounds in the values' own type: a plain int would turn uint64 values into floats
        first = np.searchsorted(values, values.dtype.type(low), side="left")
        last = np.searchsorted(values, values.dtype.type(high), side="right")
        return self.postings[kind].range(int(first), int(last))

    def among(self, kind: str, values: npt.NDArray[Any]) -> BitMap:
        held = self.values.get(kind)
        if held is None or not len(held):
            return BitMap()
        places = np.minimum(np.searchsorted(held, values), len(held) - 1)
        return self.postings[kind].of(places[held[places] == values])

    def equal_strings(self, texts: list[str]) -> BitMap:
        if self.terms is None:
            return BitMap()
        return self.postings["str"].of(self.terms.find([text.encode("utf-8") for text in texts]))

    def strings(self, leaf: Compare | Prefix | Contains) -> BitMap:
        terms = self.terms
        if terms is None:
            return BitMap()
        rows = self.postings["str"]
        if isinstance(leaf, Contains):
            return rows.of(terms.containing(leaf.text.encode("utf-8"))) if leaf.text else rows.range(0, len(terms))
        if isinstance(leaf, Prefix):
            start = leaf.text.encode("utf-8")
            return rows.range(terms.first_at_least(start), terms.first_at_least(start + SEPARATOR))
        bound = str(leaf.value).encode("utf-8")
        if leaf.op in (Op.LT, Op.GE):
            border = terms.first_at_least(bound)
        else:
            border = terms.first_at_least(bound + b"\0")  # the least string above ``bound``
        return rows.range(0, border) if leaf.op in (Op.LT, Op.LE) else rows.range(border, len(terms))

    def near(self, leaf: GeoRadius | GeoBox) -> BitMap:
        if self.points is None:
            return BitMap()
        rows, lat, lon = self.points
        if isinstance(leaf, GeoBox):
            south, north = leaf.south, leaf.north
        else:
            band = leaf.radius_m / _METRES_PER_DEGREE_LEAST + 1e-6
            south, north = leaf.lat - band, leaf.lat + band
        part = slice(int(np.searchsorted(lat, south, side="left")), int(np.searchsorted(lat, north, side="right")))
        rows, lat, lon = rows[part], lat[part], lon[part]
        mask = within_radius(leaf, lat, lon) if isinstance(leaf, GeoRadius) else within_box(leaf, lat, lon)
        return bits.from_ordinals(ordinals_where(rows, mask), self.count)

    def data(self) -> FieldData:
        """Return all entries, for a merge."""
        out = FieldData()
        for kind, values in self.values.items():
            numbers, ordinals = self.postings[kind].entries()
            out.numbers[kind] = (ordinals, values[numbers])
        if self.terms is not None:
            numbers, ordinals = self.postings["str"].entries()
            out.strings = (ordinals, numbers)
            out.terms = self.terms.all()
        if self.points is not None:
            out.points = (self.points[0], self.points[1], self.points[2])
        out.sets = {name: bits.to_ordinals(rows) for name, rows in self.sets.items()}
        return out


class SealedIndex:
    """Index of the metadata of ordinals 0 … count - 1; made by :func:`vecdb.metadata.merge.merge` or ``from_buffer``.

    Safe for any number of threads: nothing changes but the cache of decoded fields, where the last write wins.
    """

    def __init__(self, container: Container, mapped: bool) -> None:
        self._container = container
        self._mapped = mapped
        self._fields: dict[str, _Field] = {}
        try:
            self.count = int(container.meta["count"])
            if not 0 <= self.count < 1 << 31:
                raise ValueError(f"{self.count} rows")
            only = container.meta["only"]
            self.only: tuple[str, ...] | None = None if only is None else tuple(map(str, only))
        except (KeyError, TypeError, ValueError) as error:
            raise container.corrupted(f"the directory cannot be understood: {error}") from error
        self._overflow: BitMap | None = None

    @classmethod
    def from_buffer(cls, buffer: memoryview | bytes, mapped: bool = False, *, path: str = "metadata index") -> Self:
        """Open the bytes of ``to_bytes`` without copying them; the buffer must outlive the index and not change.

        ``mapped``: the buffer is a mapped file, which does not count as memory held.  ``path`` names it in
        :class:`DataCorrupted`, which this and any later question raise if the bytes are damaged.
        """
        return cls(Container(memoryview(buffer), path), mapped)

    def to_bytes(self) -> memoryview:
        """Return the bytes ``from_buffer`` opens (borrowed: the index's own)."""
        return self._container.buffer.toreadonly()

    def paths(self) -> list[str]:
        """Return the indexed paths, sorted."""
        return [name.removeprefix(FIELD_PREFIX) for name in self._container.names if name.startswith(FIELD_PREFIX)]

    def rows(self, node: Node, count: int | None = None, call: Call | None = None) -> RowSet:
        """Return the rows that match ``node``; ``count``, if given, is the segment's and changes nothing.

        Raises what ends ``call``.
        """
        return solve(node, self._leaf, self.count, call)

    def _leaf(self, leaf: Leaf) -> Bounds:
        field = self._field(join_path(split_path(leaf.path)))
        if field is None:
            return Bounds.unsure(BitMap(), self.unknown(leaf.path))
        maybe = field.set_of("unsure")
        if may_match_long(leaf):
            maybe = maybe | field.set_of("long")
        return Bounds.unsure(answer(field, leaf), maybe)

    def _field(self, path: str) -> _Field | None:
        field = self._fields.get(path)
        name = FIELD_PREFIX + path
        if field is None and name in self._container:
            arrays = self._container.arrays(name)
            try:
                field = _Field(arrays, self.count)
            except (KeyError, ValueError, TypeError) as error:
                raise self._container.corrupted(f"the postings of {path!r} cannot be read: {error}") from error
            self._fields[path] = field
        return field

    def unknown(self, path: str, count: int | None = None) -> BitMap:
        """Return the rows that may have values under a path that has no field here."""
        if self.only is not None:
            return BitMap() if join_path(split_path(path)) in self.only else all_rows(self.count)
        if self._overflow is None:
            arrays = self._container.arrays(OVERFLOW_REGION) if OVERFLOW_REGION in self._container else {}
            try:
                self._overflow = bits.load(arrays["rows"], self.count) if arrays else BitMap()
            except (KeyError, ValueError) as error:
                raise self._container.corrupted(f"the set of unindexed rows cannot be read: {error}") from error
        return self._overflow

    def fields(self, count: int | None = None) -> Iterator[tuple[str, FieldData]]:
        """Yield each indexed path and its entries, for a merge."""
        for path in self.paths():
            field = self._field(path)
            if field is not None:
                yield path, field.data()

    def memory_bytes(self) -> int:
        """Return the bytes held in memory; those of a mapped file do not count."""
        held = 0 if self._mapped else self._container.buffer.nbytes
        sets = [rows for field in list(self._fields.values()) for rows in field.bitmaps()]
        return held + sum(len(rows.serialize()) for rows in sets)
