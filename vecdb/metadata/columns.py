"""Append-only columns of (ordinal, value…) entries that readers may look at while the writer appends."""

from typing import Any

import numpy as np
import numpy.typing as npt

from vecdb.core.filters.geo import RADIANS, haversine, in_box, radius_haversine
from vecdb.core.filters.tree import GeoBox, GeoRadius
from vecdb.metadata.bits import Ordinals

_FIRST_CAPACITY = 64
_NEAR_RELATIVE = 1e-12


class Column:
    """Entries in the order of their ordinals (uint32, ascending, repeats allowed) with one value per dtype given.

    One writer extends; any thread views.  The whole state is one tuple that is replaced at the end of an extension, and
    an array is only written behind the count of every tuple that holds it, so a view never changes.
    """

    __slots__ = ("_state",)

    def __init__(self, *dtypes: Any) -> None:
        arrays = (np.empty(0, np.uint32), *(np.empty(0, dtype) for dtype in dtypes))
        self._state: tuple[int, tuple[npt.NDArray[Any], ...]] = (0, arrays)

    def extend(self, *lists: Any) -> None:
        """Append entries: the ordinals, then the values of each dtype; equal lengths, copied."""
        used, arrays = self._state
        total = used + len(lists[0])
        if total > len(arrays[0]):
            capacity = max(_FIRST_CAPACITY, total + (total >> 1))
            grown = tuple(np.empty(capacity, array.dtype) for array in arrays)
            for new, old in zip(grown, arrays, strict=True):
                new[:used] = old[:used]
            arrays = grown
        for array, values in zip(arrays, lists, strict=True):
            array[used:total] = values
        self._state = (total, arrays)

    def view(self, count: int) -> tuple[npt.NDArray[Any], ...]:
        """Return the entries whose ordinal is below ``count``: ordinals, then values; borrowed, unchanging."""
        used, arrays = self._state
        if used and arrays[0][used - 1] >= count:
            used = int(np.searchsorted(arrays[0][:used], count))
        return tuple(array[:used] for array in arrays)

    def __len__(self) -> int:
        return self._state[0]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._state[1])


def within_radius(leaf: GeoRadius, lat: npt.NDArray[np.float64], lon: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return which points are within a radius, exactly as :func:`vecdb.core.filters.geo.haversine` says.

    NumPy's sine may differ from the C library's in the last bits, so points within a relative 1e-12 of the border
    are asked one by one.
    """
    border = radius_haversine(leaf.radius_m)
    phi = np.sin((lat - leaf.lat) * RADIANS / 2.0)
    lam = np.sin((lon - leaf.lon) * RADIANS / 2.0)
    there = phi * phi + np.cos(leaf.lat * RADIANS) * np.cos(lat * RADIANS) * lam * lam
    inside: npt.NDArray[np.bool_] = there <= border
    for place in np.flatnonzero(np.abs(there - border) <= border * _NEAR_RELATIVE).tolist():
        inside[place] = haversine(leaf.lat, leaf.lon, float(lat[place]), float(lon[place])) <= border
    return inside


def within_box(leaf: GeoBox, lat: npt.NDArray[np.float64], lon: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return which points are in a box, as :func:`vecdb.core.filters.geo.in_box` says."""
    west, east = leaf.west, leaf.east
    across = (lon >= west) & (lon <= east) if west <= east else (lon >= west) | (lon <= east)
    inside = (lat >= leaf.south) & (lat <= leaf.north)
    odd = np.flatnonzero(inside & ((np.abs(lat) == 90.0) | (np.abs(lon) == 180.0)))
    inside &= across
    for place in odd.tolist():
        inside[place] = in_box(float(lat[place]), float(lon[place]), leaf.south, west, leaf.north, east)
    return inside


def ordinals_where(ordinals: Ordinals, mask: npt.NDArray[np.bool_]) -> Ordinals:
    """Return the ordinals of the entries where ``mask`` holds."""
    # compress by index is quicker than by mask when few are taken
    return ordinals[np.flatnonzero(mask)]
