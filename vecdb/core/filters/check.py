"""Leaves and trees within the rules, whatever they were written in.

The parser, the builder and the mapping form make their leaves here, so that one typing rule and one
set of limits holds for all: values are strings, integers, finite floats, booleans, null or instants; order (``< <= >
>=``) is for numbers, strings and instants; ``== null`` is ``is null``; an ``and`` of nothing is everything.
"""

import datetime as dt
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from vecdb.core.errors import InvalidFilter
from vecdb.core.filters.paths import check_path
from vecdb.core.filters.times import clamp_ns, datetime_ns
from vecdb.core.filters.tree import (
    And,
    Compare,
    Contains,
    Everything,
    Exists,
    GeoBox,
    GeoRadius,
    In,
    IsNull,
    Node,
    Not,
    Op,
    Or,
    Prefix,
    Time,
    Value,
)
from vecdb.core.limits import MAX_FILTER_BYTES, MAX_FILTER_DEPTH, MAX_FILTER_NODES, MAX_IN_VALUES

_VALUES = "str, int, finite float, bool, None, datetime or Time"
_MAX_INT_BITS = 3_000
NOTHING = Not(Everything())


def check_text(text: object, what: str, position: int | None = None) -> str:
    """Return a plain str that is valid Unicode and not longer than a filter, or raise :class:`InvalidFilter`."""
    if not isinstance(text, str):
        raise InvalidFilter(f"{what} must be a str, not {type(text).__name__}", position=position,
                            got=type(text).__name__, limit="str")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise InvalidFilter(f"{what} must be valid Unicode (it holds a lone surrogate)", position=position, got="str",
                            limit="UTF-8") from None
    if size > MAX_FILTER_BYTES:
        raise InvalidFilter(f"{what} of {size} bytes is longer than {MAX_FILTER_BYTES}", position=position, got=size,
                            limit=MAX_FILTER_BYTES)
    return str.__str__(text)


def check_value(value: object, position: int | None = None) -> Value:
    """Return ``value`` as a value of the tree, or raise :class:`InvalidFilter`."""
    if isinstance(value, np.datetime64) and not np.isnat(value):
        return Time(clamp_ns(int(value.astype("datetime64[ns]").astype(np.int64))))
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Time):
        if type(value.unix_ns) is not int:
            raise InvalidFilter("a Time holds an int of nanoseconds", position=position,
                                got=type(value.unix_ns).__name__, limit="int")
        return Time(clamp_ns(value.unix_ns))
    if isinstance(value, str):
        return check_text(value, "a string", position)
    if isinstance(value, int):
        if value.bit_length() > _MAX_INT_BITS:
            raise InvalidFilter(f"an integer of {value.bit_length()} bits is too large", position=position,
                                got=value.bit_length(), limit=_MAX_INT_BITS)
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidFilter(f"{value} is not a finite number", position=position, got="float", limit="finite")
        return float(value)
    if isinstance(value, dt.date):
        return Time(datetime_ns(value))
    hint = "; compare a list element by element, or use 'in'" if isinstance(value, list | tuple | set) else ""
    raise InvalidFilter(f"cannot compare with a value of type {type(value).__name__}{hint}", position=position,
                        got=type(value).__name__, limit=_VALUES)


def compare(path: str, op: str, value: object, position: int | None = None) -> Node:
    """Return ``path op value`` for ``== != < <= > >=``; ``position`` is the value's, for errors."""
    path, checked = check_path(path), check_value(value, position)
    if op in ("==", "!="):
        equal: Node = IsNull(path) if checked is None else Compare(path, Op.EQ, checked)
        return equal if op == "==" else Not(equal)
    if checked is None or isinstance(checked, bool):
        raise InvalidFilter(f"{op} needs a number, a string or a time, not {kind_of(checked)}", position=position,
                            got=kind_of(checked), limit="number, string or time")
    return Compare(path, Op(op), checked)


def kind_of(value: object) -> str:
    """Return the word users know a value's kind by."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    return "a string" if isinstance(value, str) else "a time" if isinstance(value, Time) else type(value).__name__


def is_in(path: str, values: object, position: int | None = None) -> Node:
    """Return ``path in values`` (any iterable but a string or a mapping)."""
    if isinstance(values, np.ndarray) and values.ndim == 1:
        values = values.tolist() if values.dtype.kind != "M" else list(values)
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | dict):
        raise InvalidFilter(f"'in' needs a list of values, not {type(values).__name__}", position=position,
                            got=type(values).__name__, limit="a list")
    listed: list[Value] = []
    for value in values:
        if len(listed) >= MAX_IN_VALUES:
            raise InvalidFilter(f"an 'in' list of more than {MAX_IN_VALUES} values", position=position,
                                got=f"> {MAX_IN_VALUES}", limit=MAX_IN_VALUES)
        listed.append(check_value(value, position))
    return In(check_path(path), tuple(listed))


def prefix(path: str, text: object, position: int | None = None) -> Node:
    """Return ``path startswith text``."""
    return Prefix(check_path(path), check_text(text, "a prefix", position))


def contains(path: str, text: object, position: int | None = None) -> Node:
    """Return ``path contains text``."""
    return Contains(check_path(path), check_text(text, "a substring", position))


def _real(value: object, what: str, low: float, high: float, position: int | None) -> float:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidFilter(f"{what} must be a number, not {kind_of(value)}", position=position,
                            got=type(value).__name__, limit=f"{low}..{high}")
    if not low <= value <= high:
        raise InvalidFilter(f"{what} {value!r:.40} is outside {low}..{high}", position=position, got=value,
                            limit=f"{low}..{high}")
    return float(value)


def geo_radius(path: str, lat: object, lon: object, radius_m: object, position: int | None = None) -> Node:
    """Return the condition of lying within ``radius_m`` metres of a point."""
    return GeoRadius(check_path(path), _real(lat, "lat", -90, 90, position), _real(lon, "lon", -180, 180, position),
                     _real(radius_m, "the radius in metres", 0, 1e9, position))


def geo_box(path: str, south: object, west: object, north: object, east: object, position: int | None = None) -> Node:
    """Return the condition of lying in a box; ``west > east`` crosses the antimeridian."""
    box = GeoBox(check_path(path), _real(south, "south", -90, 90, position), _real(west, "west", -180, 180, position),
                 _real(north, "north", -90, 90, position), _real(east, "east", -180, 180, position))
    if box.south > box.north:
        raise InvalidFilter(f"a box's south {box.south} is above its north {box.north}; the order is south, west, "
                            "north, east", position=position, got=box.south, limit=box.north)
    return box


def join(kind: type[And] | type[Or], nodes: list[Node]) -> Node:
    """Return ``nodes`` joined: one stands alone, none is everything (and) or nothing (or)."""
    if len(nodes) == 1:
        return nodes[0]
    if not nodes:
        return Everything() if kind is And else NOTHING
    return kind(tuple(nodes))


class Budget:
    """Counts a tree's conditions and its depth while it is made or checked, and refuses past the limits."""

    __slots__ = ("nodes",)

    def __init__(self) -> None:
        self.nodes = 0

    def leaf(self, position: int | None = None) -> None:
        self.nodes += 1
        if self.nodes > MAX_FILTER_NODES:
            raise InvalidFilter(f"more than {MAX_FILTER_NODES} conditions", position=position, got=self.nodes,
                                limit=MAX_FILTER_NODES)

    @staticmethod
    def depth(depth: int, position: int | None = None) -> None:
        if depth > MAX_FILTER_DEPTH:
            raise InvalidFilter(f"nested deeper than {MAX_FILTER_DEPTH}", position=position, got=depth,
                                limit=MAX_FILTER_DEPTH)


def check_depth(node: Node, depth: int = 1) -> None:
    """Raise :class:`InvalidFilter` if a tree made of checked leaves nests too deep."""
    Budget.depth(depth)
    if isinstance(node, And | Or):
        for part in node.nodes:
            check_depth(part, depth + 1)
    elif isinstance(node, Not):
        check_depth(node.node, depth + 1)


def check_node(node: object) -> Node:
    """Return the canonical form of a tree made by hand or by the builder, or raise :class:`InvalidFilter`."""
    return _check(node, 1, Budget())


def _check(node: Any, depth: int, budget: Budget) -> Node:
    budget.depth(depth)
    match node:
        case And(nodes) | Or(nodes):
            if not isinstance(nodes, tuple | list):
                raise InvalidFilter(f"{type(node).__name__} holds a tuple of nodes", got=type(nodes).__name__,
                                    limit="tuple")
            return join(type(node), [_check(part, depth + 1, budget) for part in nodes])
        case Not(inner):
            return Not(_check(inner, depth + 1, budget))
    budget.leaf()
    match node:
        case Everything():
            return node
        case Compare(path, op, value):
            if op not in tuple(Op):
                raise InvalidFilter(f"unknown comparison {op!r}", got=repr(op), limit=", ".join(Op))
            return compare(path, op, value)
        case In(path, values):
            return is_in(path, values)
        case Prefix(path, text):
            return prefix(path, text)
        case Contains(path, text):
            return contains(path, text)
        case Exists(path):
            return Exists(check_path(path))
        case IsNull(path):
            return IsNull(check_path(path))
        case GeoRadius(path, lat, lon, radius_m):
            return geo_radius(path, lat, lon, radius_m)
        case GeoBox(path, south, west, north, east):
            return geo_box(path, south, west, north, east)
    raise InvalidFilter(f"{type(node).__name__} is no part of a filter's tree", got=type(node).__name__, limit="Node")
