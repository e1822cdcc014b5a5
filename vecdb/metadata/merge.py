"""Merging: the entries of some indexes under new ordinals, as one sealed index, without reading a record again."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from vecdb.core.limits import MAX_INDEXED_FIELDS
from vecdb.metadata import bits, postings
from vecdb.metadata.bits import Ordinals
from vecdb.metadata.fields import SETS, FieldData
from vecdb.metadata.growing import GrowingIndex
from vecdb.metadata.intervals import DTYPES
from vecdb.metadata.layout import Arrays, pack
from vecdb.metadata.sealed import FIELD_PREFIX, OVERFLOW_REGION, SEPARATOR, SealedIndex

Part: TypeAlias = tuple[GrowingIndex | SealedIndex, npt.NDArray[np.int32]]
"""An index and, for each of its ordinals, the new one, or -1 for a record that is dropped."""


def merge(parts: Sequence[Part], count: int, *, max_fields: int = MAX_INDEXED_FIELDS) -> SealedIndex:
    """Return the sealed index of ordinals 0 … count - 1 from the entries of ``parts``.

    Ordinals of a growing part beyond the length of its mapping are left out.  The indexes are only read.  A path
    that is unknown for some part's rows (that part had no room for it) stays unsure for those.
    """
    only = _only(parts)
    gathered: dict[str, list[tuple[int, FieldData]]] = defaultdict(list)
    for number, (index, new_ordinal) in enumerate(parts):
        for path, data in index.fields(len(new_ordinal)):
            remapped = _remap(data, new_ordinal)
            if (only is None or path in only) and _holds_anything(remapped):
                gathered[path].append((number, remapped))
    overflow = BitMap()
    for index, new_ordinal in parts:
        if index.only is None and only is None:
            unknown = bits.to_ordinals(index.unknown("", len(new_ordinal)))
            overflow |= bits.from_ordinals(_move(unknown, new_ordinal)[0], count)
    regions: list[tuple[str, Arrays]] = []
    dropped = _dropped(gathered, max_fields)
    if only is not None:  # a path that is named and not there is one that no record has
        only = tuple(path for path in only if path not in dropped)
    for path in dropped:
        for _, data in gathered.pop(path):
            for rows in data.sets.values():
                overflow |= bits.from_ordinals(rows, count)
    for path in sorted(gathered):
        fields = gathered[path]
        have = {number for number, _ in fields}
        missing = [_move(bits.to_ordinals(index.unknown(path, len(new_ordinal))), new_ordinal)[0]
                   for number, (index, new_ordinal) in enumerate(parts) if number not in have]
        regions.append((FIELD_PREFIX + path, _region([data for _, data in fields], missing, count)))
    if overflow:
        regions.append((OVERFLOW_REGION, {"rows": _blob(overflow)}))
    meta = {"count": count, "only": None if only is None else list(only)}
    return SealedIndex.from_buffer(pack(meta, regions))


def _only(parts: Sequence[Part]) -> tuple[str, ...] | None:
    """Return the paths every part indexes, or None if all index all."""
    lists = [index.only for index, _ in parts if index.only is not None]
    if not lists:
        return None
    return tuple(path for path in lists[0] if all(path in other for other in lists[1:]))


def _dropped(gathered: dict[str, list[tuple[int, FieldData]]], max_fields: int) -> list[str]:
    """Return the paths for which there is no room: those that the fewest records have."""
    if len(gathered) <= max_fields:
        return []
    held = {path: sum(len(data.sets.get("exists", ())) for _, data in parts) for path, parts in gathered.items()}
    return sorted(gathered, key=lambda path: (-held[path], path))[max_fields:]


def _move(ordinals: Ordinals, new_ordinal: npt.NDArray[np.int32], *values: npt.NDArray[Any]) -> tuple[Any, ...]:
    """Return the entries that stay, under their new ordinals."""
    moved = new_ordinal[ordinals]
    kept = np.flatnonzero(moved >= 0)
    return (moved[kept].astype(np.uint32), *(column[kept] for column in values))


def _remap(data: FieldData, new_ordinal: npt.NDArray[np.int32]) -> FieldData:
    out = FieldData(terms=data.terms)
    for kind, (ordinals, values) in data.numbers.items():
        out.numbers[kind] = _move(ordinals, new_ordinal, values)
    if data.strings is not None:
        out.strings = _move(data.strings[0], new_ordinal, data.strings[1])
    if data.points is not None:
        out.points = _move(data.points[0], new_ordinal, *data.points[1:])
    out.sets = {name: _move(rows, new_ordinal)[0] for name, rows in data.sets.items()}
    return out


def _holds_anything(data: FieldData) -> bool:
    return any(len(rows) for rows in data.sets.values())


def _region(fields: list[FieldData], missing: list[Ordinals], count: int) -> Arrays:
    arrays: Arrays = {}
    for kind, dtype in DTYPES.items():
        held = [data.numbers[kind] for data in fields if kind in data.numbers]
        if held:
            values, numbers = np.unique(np.concatenate([part[1] for part in held]), return_inverse=True)
            arrays[f"{kind}.values"] = values.astype(dtype, copy=False)
            ordinals = np.concatenate([part[0] for part in held])
            arrays |= postings.build(numbers.reshape(-1), ordinals, len(values), count, kind)
    arrays |= _strings([data for data in fields if data.strings is not None], count)
    points = [data.points for data in fields if data.points is not None]
    if points:
        rows, lat, lon = (np.concatenate([part[place] for part in points]) for place in range(3))
        order = np.lexsort((rows, lat))
        arrays |= {"geo.ordinals": rows[order].astype("<u4"), "geo.lat": lat[order].astype("<f8"),
                   "geo.lon": lon[order].astype("<f8")}
    for name in SETS:
        parts = [data.sets[name] for data in fields if name in data.sets] + (missing if name == "unsure" else [])
        rows_set = bits.from_ordinals(np.concatenate(parts), count) if parts else BitMap()
        if rows_set:
            arrays[name] = _blob(rows_set)
    return arrays


def _strings(fields: list[FieldData], count: int) -> Arrays:
    """Return the arrays of the strings of some parts under one dictionary of the terms still used."""
    used: list[list[int]] = []
    distinct: set[bytes] = set()
    for data in fields:
        assert data.strings is not None
        alive = np.flatnonzero(np.bincount(data.strings[1], minlength=len(data.terms))).tolist()
        used.append(alive)
        distinct.update([data.terms[number] for number in alive])
    if not distinct:
        return {}
    terms = sorted(distinct)
    number_of = {term: number for number, term in enumerate(terms)}
    numbers: list[npt.NDArray[np.int64]] = []
    ordinals: list[Ordinals] = []
    for data, alive in zip(fields, used, strict=True):
        assert data.strings is not None
        renumber = np.zeros(len(data.terms), dtype=np.int64)
        renumber[alive] = [number_of[data.terms[number]] for number in alive]
        numbers.append(renumber[data.strings[1]])
        ordinals.append(data.strings[0])
    blob = SEPARATOR.join(terms) + SEPARATOR
    at = np.concatenate(([0], np.cumsum([len(term) + 1 for term in terms])))
    wide = len(blob) >= 1 << 32
    return {"str.terms": np.frombuffer(blob, dtype=np.uint8), "str.at": at.astype("<u8" if wide else "<u4"),
            **postings.build(np.concatenate(numbers), np.concatenate(ordinals), len(terms), count, "str")}


def _blob(rows: BitMap) -> npt.NDArray[np.uint8]:
    rows.run_optimize()
    return np.frombuffer(rows.serialize(), dtype=np.uint8)
