"""A tree as an expression that parses back to the same tree."""

from vecdb.core.filters.paths import split_path
from vecdb.core.filters.times import format_time
from vecdb.core.filters.tokens import CONTEXTUAL, NAME, RESERVED
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
    Or,
    Prefix,
    Time,
    Value,
)

_ESCAPED = {"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f", "\0": "\\0"}


def to_text(node: Node) -> str:
    """Return the expression of a canonical tree (one that ``to_node`` or ``parse`` made)."""
    match node:
        case And(nodes):
            return " and ".join(_inner(part) for part in nodes)
        case Or(nodes):
            return " or ".join(_inner(part) for part in nodes)
        case Not(inner):
            return f"not {_inner(inner)}"
        case Everything():
            return "true"
        case Compare(path, op, value):
            return f"{path_text(path)} {op.value} {value_text(value)}"
        case In(path, values):
            return f"{path_text(path)} in [{', '.join(map(value_text, values))}]"
        case Prefix(path, text):
            return f"{path_text(path)} startswith {value_text(text)}"
        case Contains(path, text):
            return f"{path_text(path)} contains {value_text(text)}"
        case Exists(path):
            return f"exists {path_text(path)}"
        case IsNull(path):
            return f"{path_text(path)} is null"
        case GeoRadius(path, lat, lon, radius_m):
            return f"geo_radius({path_text(path)}, {lat!r}, {lon!r}, {radius_m!r})"
        case GeoBox(path, south, west, north, east):
            return f"geo_box({path_text(path)}, {south!r}, {west!r}, {north!r}, {east!r})"


def _inner(node: Node) -> str:
    text = to_text(node)
    return f"({text})" if isinstance(node, And | Or) else text


def value_text(value: Value) -> str:
    """Return a value as an expression writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value, "'")
    if isinstance(value, Time):
        return f"time('{format_time(value.unix_ns)}')"
    return repr(value)


def path_text(path: str) -> str:
    """Return a path as an expression writes it: keys that are no names, and reserved ones, in backticks."""
    keys = split_path(path)
    first = keys[0].lower()
    if first in RESERVED or first in CONTEXTUAL:
        return ".".join((_quoted(keys[0], "`"), *map(_key, keys[1:])))
    return ".".join(map(_key, keys))


def _key(key: str) -> str:
    return key if NAME.fullmatch(key) else _quoted(key, "`")


def _quoted(text: str, quote: str) -> str:
    body = "".join(_ESCAPED.get(char, char) for char in text) if not text.isalnum() else text
    return quote + body.replace(quote, "\\" + quote) + quote
