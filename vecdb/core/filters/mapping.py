"""The mapping form: ``{"year": {"$gte": 2020}, "$or": [{"lang": "en"}, {"lang": {"$exists": False}}]}``.

Keys are paths or ``$and $or $nor`` (lists) and ``$not`` (a mapping); all of a mapping must hold.  A path's value is a
plain value (equality) or operators: ``$eq $ne $gt $gte $lt $lte $in $nin $exists $null $prefix $contains $not``,
``$geo_radius`` (``{"lat", "lon", "radius_m"}`` or three numbers) and ``$geo_box`` (``{"south", "west", "north",
"east"}`` or four).
A value ``{"$time": "2024-01-31T12:00:00Z"}`` is an instant (without offset: UTC), for those who send JSON.
``{"$field": ["$price", {"$gt": 3}]}`` is the condition on a path that begins with ``$``.
"""

from collections.abc import Mapping
from typing import Any, assert_never

from vecdb.core.errors import InvalidFilter
from vecdb.core.filters import check
from vecdb.core.filters.check import Budget
from vecdb.core.filters.paths import check_path
from vecdb.core.filters.times import format_time, parse_literal
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
    Leaf,
    Node,
    Not,
    Op,
    Or,
    Prefix,
    Time,
    Value,
)
from vecdb.core.limits import MAX_IN_VALUES

_COMPARISONS = {"$eq": "==", "$ne": "!=", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_GEO = {"$geo_radius": ("lat", "lon", "radius_m"), "$geo_box": ("south", "west", "north", "east")}
_FIELD_OPS = (*_COMPARISONS, "$in", "$nin", "$exists", "$null", "$prefix", "$contains", "$not", *_GEO)
_LOGIC = ("$and", "$or", "$nor", "$not", "$field")
_WRITTEN = {Op.EQ: "$eq", Op.LT: "$lt", Op.LE: "$lte", Op.GT: "$gt", Op.GE: "$gte"}


def from_mapping(mapping: Mapping[str, Any]) -> Node:
    """Return the tree of a mapping, or raise :class:`InvalidFilter` that names the key.

    Mappings inside each other count as a tree's levels do, which bounds the recursion; joins that they imply
    (several keys in one mapping) count when the tree is whole.
    """
    node = _mapping(mapping, 1, Budget())
    check.check_depth(node)
    return node


def to_mapping(node: Node) -> dict[str, Any]:
    """Return the mapping of a canonical tree (one that ``to_node`` or ``parse`` made): ``from_mapping``'s inverse.

    Its values are JSON's, but for integers of more than 64 bits, which not every reader of JSON keeps.
    """
    match node:
        case Everything():
            return {}
        case And(nodes):
            return {"$and": [to_mapping(part) for part in nodes]}
        case Or(nodes):
            return {"$or": [to_mapping(part) for part in nodes]}
        case Not(inner):
            return {"$not": to_mapping(inner)}
    condition = _condition(node)
    return {"$field": [node.path, condition]} if node.path.startswith("$") else {node.path: condition}


def _condition(leaf: Leaf) -> dict[str, Any]:
    match leaf:
        case Compare(_, op, value):
            return {_WRITTEN[op]: _written(value)}
        case In(_, values):
            return {"$in": [_written(value) for value in values]}
        case Prefix(_, text):
            return {"$prefix": text}
        case Contains(_, text):
            return {"$contains": text}
        case Exists():
            return {"$exists": True}
        case IsNull():
            return {"$null": True}
        case GeoRadius(_, lat, lon, radius_m):
            return {"$geo_radius": [lat, lon, radius_m]}
        case GeoBox(_, south, west, north, east):
            return {"$geo_box": [south, west, north, east]}
    assert_never(leaf)


def _written(value: Value) -> Any:
    return {"$time": format_time(value.unix_ns)} if isinstance(value, Time) else value


def _refuse(where: str, message: str, got: object, limit: str) -> InvalidFilter:
    return InvalidFilter(f"{where:.100}: {message}" if where else message,
                         got=got[:100] if isinstance(got, str) else type(got).__name__, limit=limit)


def _mapping(mapping: object, depth: int, budget: Budget) -> Node:
    budget.depth(depth)
    if not isinstance(mapping, Mapping):
        raise _refuse("", f"expected a mapping of paths, not {type(mapping).__name__}", mapping, "a mapping")
    if not mapping:
        budget.leaf()
        return Everything()
    parts: list[Node] = []
    for key, value in mapping.items():
        if not isinstance(key, str):
            raise _refuse("", f"a key must be a str, not {type(key).__name__}", key, "str")
        parts.append(_logic(key, value, depth, budget) if key.startswith("$")
                     else _field(check_path(key), value, depth, budget))
    return check.join(And, parts)


def _logic(key: str, value: object, depth: int, budget: Budget) -> Node:
    if key == "$not":
        return Not(_mapping(value, depth + 1, budget))
    if key == "$field":
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise _refuse(key, f"needs a list of a path and its condition, not {type(value).__name__}", value,
                          "[path, condition]")
        return _field(check_path(value[0]), value[1], depth, budget)
    if key not in _LOGIC:
        raise _refuse("", f"unknown operator {key!r:.60} where a path may stand; known are {', '.join(_LOGIC)}", key,
                      ", ".join(_LOGIC))
    if not isinstance(value, list | tuple):
        raise _refuse(key, f"needs a list of mappings, not {type(value).__name__}", value, "a list")
    parts = [_mapping(part, depth + 1, budget) for part in value]
    if not parts:
        budget.leaf()
    joined = check.join(And if key == "$and" else Or, parts)
    return Not(joined) if key == "$nor" else joined


def _field(path: str, value: object, depth: int, budget: Budget) -> Node:
    budget.depth(depth)
    if not isinstance(value, Mapping) or "$time" in value:
        budget.leaf()
        if isinstance(value, list | tuple):
            raise _refuse(path, "a list is not compared as a whole; use {'$in': [...]}", value, "a value or operators")
        return check.compare(path, "==", _value(value))
    if not value:
        raise _refuse(path, "an empty mapping says nothing", value, "a value or operators")
    return check.join(And, [_operator(path, op, operand, depth, budget) for op, operand in value.items()])


def _operator(path: str, op: object, operand: Any, depth: int, budget: Budget) -> Node:
    if not isinstance(op, str) or op not in _FIELD_OPS:
        nested = isinstance(op, str) and not op.startswith("$")
        hint = f"; a nested path is written '{path:.60}.{op:.60}'" if nested else ""
        raise _refuse(path, f"unknown operator {op!r:.60}{hint}; known are {', '.join(_FIELD_OPS)}", op,
                      ", ".join(_FIELD_OPS))
    if op == "$not":
        return Not(_field(path, operand, depth + 1, budget))
    budget.leaf()
    if op in _COMPARISONS:
        return check.compare(path, _COMPARISONS[op], _value(operand))
    if op in ("$in", "$nin"):
        # One too many is enough for the refusal; millions need not be looked at for it.
        listed = ([_value(item) for item in operand[:MAX_IN_VALUES + 1]] if isinstance(operand, list | tuple)
                  else operand)
        among = check.is_in(path, listed)
        return among if op == "$in" else Not(among)
    if op in ("$exists", "$null"):
        if not isinstance(operand, bool):
            raise _refuse(path, f"{op} needs true or false, not {type(operand).__name__}", operand, "bool")
        node: Node = Exists(path) if op == "$exists" else IsNull(path)
        return node if operand else Not(node)
    if op == "$prefix":
        return check.prefix(path, operand)
    if op == "$contains":
        return check.contains(path, operand)
    return _geo(path, op, operand)


def _geo(path: str, op: str, operand: object) -> Node:
    names = _GEO[op]
    if isinstance(operand, Mapping) and set(operand) == set(names):
        numbers = [operand[name] for name in names]
    elif isinstance(operand, list | tuple) and len(operand) == len(names):
        numbers = list(operand)
    else:
        raise _refuse(path, f"{op} needs {', '.join(names)}", operand, ", ".join(names))
    return check.geo_radius(path, *numbers) if op == "$geo_radius" else check.geo_box(path, *numbers)


def _value(value: object) -> object:
    if isinstance(value, Mapping) and set(value) == {"$time"}:
        text = check.check_text(value["$time"], "$time")
        unix_ns = parse_literal(text)
        if unix_ns is None:
            raise _refuse("", f"{text[:48]!r} is no RFC 3339 time (without an offset: UTC)", text[:48], "RFC 3339")
        return Time(unix_ns)
    return value
