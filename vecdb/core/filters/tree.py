"""The one tree that every form of filter parses to.

Logic is two-valued: a comparison on a path that a record lacks is false, and ``!=``, ``not in`` and
``not`` are plain negations, so they match such records.  On a list a comparison holds if it holds for
any element.  ``exists`` is about the key (a null value exists); ``is null`` is a present null.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

Scalar: TypeAlias = str | int | float | bool | None
"""Times are compared as RFC 3339 strings are: a :class:`Time` holds the instant."""


@dataclass(frozen=True, slots=True)
class Time:
    """An instant: nanoseconds since the Unix epoch, UTC.  A string in a record equals it if it parses to it."""

    unix_ns: int


Value: TypeAlias = str | int | float | bool | Time | None


class Op(StrEnum):
    EQ = "=="
    LT = "<"
    LE = "<="
    GT = ">"
    GE = ">="


@dataclass(frozen=True, slots=True)
class Compare:
    """``path op value``."""

    path: str
    op: Op
    value: Value


@dataclass(frozen=True, slots=True)
class In:
    """``path in [values]``: equal to any."""

    path: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Prefix:
    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Contains:
    """A substring of a string (or of any string of a list)."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Exists:
    path: str


@dataclass(frozen=True, slots=True)
class IsNull:
    path: str


@dataclass(frozen=True, slots=True)
class GeoRadius:
    """Within ``radius_m`` metres of a point, on the sphere; the field is ``{"lat": …, "lon": …}``."""

    path: str
    lat: float
    lon: float
    radius_m: float


@dataclass(frozen=True, slots=True)
class GeoBox:
    """Inside a box; ``west > east`` crosses the antimeridian."""

    path: str
    south: float
    west: float
    north: float
    east: float


@dataclass(frozen=True, slots=True)
class And:
    nodes: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Or:
    nodes: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Not:
    node: "Node"


@dataclass(frozen=True, slots=True)
class Everything:
    """Matches every record (an empty ``And``, an empty filter)."""


Leaf: TypeAlias = Compare | In | Prefix | Contains | Exists | IsNull | GeoRadius | GeoBox
Node: TypeAlias = Leaf | And | Or | Not | Everything


def paths_of(node: Node) -> list[str]:
    """The paths a tree looks at, each once, in their order."""
    if isinstance(node, And | Or):
        return list(dict.fromkeys(path for part in node.nodes for path in paths_of(part)))
    if isinstance(node, Not):
        return paths_of(node.node)
    return [] if isinstance(node, Everything) else [node.path]
