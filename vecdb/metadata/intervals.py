"""Comparisons with a number as closed intervals of a column's own type, exactly.

Integers are kept as int64 or uint64 and floats as float64, each in its column, and a comparison with any number
becomes ``low <= x <= high`` in each type by rounding the bound inwards.  So ``2**53 + 1`` and ``2.0**53`` differ as
they do in Python, and no value is converted on the way in.
"""

import math
from typing import Any, TypeAlias

import numpy as np

from vecdb.core.filters.tree import Op

Interval: TypeAlias = tuple[Any, Any]
"""Closed; both ends are of the column's type."""

INT, UINT, FLOAT, BOOL, TIME = "int", "uint", "float", "bool", "time"
DTYPES: dict[str, np.dtype[Any]] = {
    INT: np.dtype("<i8"), UINT: np.dtype("<u8"), FLOAT: np.dtype("<f8"), BOOL: np.dtype("u1"), TIME: np.dtype("<i8"),
}
NUMBERS = (INT, UINT, FLOAT)

_RANGES = {kind: (int(np.iinfo(DTYPES[kind]).min), int(np.iinfo(DTYPES[kind]).max)) for kind in (INT, UINT, TIME)}


def interval(kind: str, op: Op, value: float) -> Interval | None:
    """Return the values of a column of ``kind`` for which ``x op value``, or None if there is none."""
    return _of_floats(op, value) if kind == FLOAT else _of_integers(*_RANGES[kind], op, value)


def _of_integers(low: int, high: int, op: Op, value: float) -> Interval | None:
    floor, ceil = math.floor(value), math.ceil(value)
    if op is Op.EQ:
        low, high = (max(low, floor), min(high, floor)) if floor == ceil else (1, 0)
    elif op is Op.LT:
        high = min(high, ceil - 1)
    elif op is Op.LE:
        high = min(high, floor)
    elif op is Op.GT:
        low = max(low, floor + 1)
    else:
        low = max(low, ceil)
    return (low, high) if low <= high else None


def _of_floats(op: Op, value: float) -> Interval | None:
    try:
        near = float(value)
    except OverflowError:
        near = math.inf if value > 0 else -math.inf
    if op is Op.EQ:
        return (near, near) if near == value and math.isfinite(near) else None
    low, high = -math.inf, math.inf
    if op in (Op.LT, Op.LE):
        inside = near < value or (op is Op.LE and near == value)
        high = near if inside else math.nextafter(near, -math.inf)
    else:
        inside = near > value or (op is Op.GE and near == value)
        low = near if inside else math.nextafter(near, math.inf)
    return (low, high)
