"""The meaning: what a tree says of one record's metadata.  Indexes answer exactly as this does.

A path reaches *values*: the value under its last key, and where that is a list, its elements instead of it (an empty
list reaches no value, but the key exists; a list inside a list is one value that equals nothing).  A comparison
holds if it holds for any value.  Numbers compare with numbers, exactly (``2**53 + 1`` is not ``2.0**53``), and
booleans are no numbers; strings with strings, by code point; an instant with strings that are RFC 3339 times.  Any
other pair is neither equal nor ordered.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from vecdb.core.filters.geo import haversine, in_box, point_of, radius_haversine
from vecdb.core.filters.paths import split_path
from vecdb.core.filters.times import parse_time
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

Predicate: TypeAlias = Callable[[dict[str, Any]], bool]
_Test: TypeAlias = Callable[[Any], bool]


def evaluate(node: Node, metadata: dict[str, Any]) -> bool:
    """Whether a record with this metadata matches."""
    return predicate(node)(metadata)


def predicate(node: Node) -> Predicate:
    """Return ``evaluate`` for one tree, prepared to be asked about many records."""
    match node:
        case Everything():
            return lambda metadata: True
        case Not(inner):
            negated = predicate(inner)
            return lambda metadata: not negated(metadata)
        case And(nodes):
            parts = [predicate(part) for part in nodes]
            return lambda metadata: all(part(metadata) for part in parts)
        case Or(nodes):
            parts = [predicate(part) for part in nodes]
            return lambda metadata: any(part(metadata) for part in parts)
        case Exists(path):
            keys = split_path(path)
            return lambda metadata: any(True for _ in reach(metadata, keys))
        case _:
            return _any_value(split_path(node.path), _test(node))


def _any_value(keys: tuple[str, ...], test: _Test) -> Predicate:
    if len(keys) == 1:
        key = keys[0]

        def shallow(metadata: dict[str, Any]) -> bool:
            if key not in metadata:
                return False
            value = metadata[key]
            return any(map(test, value)) if type(value) is list else test(value)

        return shallow

    def deep(metadata: dict[str, Any]) -> bool:
        return any(any(map(test, value)) if type(value) is list else test(value) for value in reach(metadata, keys))

    return deep


def reach(metadata: Any, keys: tuple[str, ...]) -> Iterable[Any]:
    """Yield what stands under the path in each object it leads to (lists unopened)."""
    key, rest = keys[0], keys[1:]
    if key not in metadata:
        return
    value = metadata[key]
    if not rest:
        yield value
    elif type(value) is dict:
        yield from reach(value, rest)
    elif type(value) is list:
        for item in value:
            if type(item) is dict:
                yield from reach(item, rest)


def _test(node: Node) -> _Test:
    match node:
        case IsNull():
            return lambda value: value is None
        case Compare(_, op, value):
            return _compare(op, value)
        case In(_, values):
            return _among(values)
        case Prefix(_, text):
            return lambda value: type(value) is str and value.startswith(text)
        case Contains(_, text):
            return lambda value: type(value) is str and text in value
        case GeoRadius(_, lat, lon, radius_m):
            return _within(lat, lon, radius_m)
        case GeoBox(_, south, west, north, east):

            def boxed(value: Any) -> bool:
                point = point_of(value)
                return point is not None and in_box(*point, south, west, north, east)

            return boxed
    raise TypeError(f"{type(node).__name__} is no leaf")


def _within(lat: float, lon: float, radius_m: float) -> _Test:
    border = radius_haversine(radius_m)

    def near(value: Any) -> bool:
        point = point_of(value)
        return point is not None and haversine(lat, lon, *point) <= border

    return near


_ORDER: dict[Op, Callable[[Any, Any], bool]] = {
    Op.EQ: lambda a, b: a == b,
    Op.LT: lambda a, b: a < b,
    Op.LE: lambda a, b: a <= b,
    Op.GT: lambda a, b: a > b,
    Op.GE: lambda a, b: a >= b,
}


def _compare(op: Op, wanted: Value) -> _Test:
    holds = _ORDER[op]
    if wanted is None or isinstance(wanted, bool):
        # Identity is equality for null and the booleans; they have no order
        return (lambda value: value is wanted) if op is Op.EQ else (lambda value: False)
    if isinstance(wanted, str):
        return lambda value: type(value) is str and holds(value, wanted)
    if isinstance(wanted, Time):
        unix_ns = wanted.unix_ns

        def timed(value: Any) -> bool:
            if type(value) is not str:
                return False
            instant = parse_time(value)
            return instant is not None and holds(instant, unix_ns)

        return timed
    return lambda value: (type(value) is int or type(value) is float) and holds(value, wanted)


def _among(values: tuple[Value, ...]) -> _Test:
    strings = {value for value in values if isinstance(value, str)}
    numbers = {value for value in values if isinstance(value, int | float) and not isinstance(value, bool)}
    instants = {value.unix_ns for value in values if isinstance(value, Time)}
    singles = [value for value in values if value is None or isinstance(value, bool)]

    def among(value: Any) -> bool:
        kind = type(value)
        if kind is str:
            return value in strings or (bool(instants) and parse_time(value) in instants)
        if kind is int or kind is float:
            return value in numbers
        return any(value is single for single in singles)

    return among
