"""``F``: filters as Python expressions.

``(F.year >= 2020) & F.lang.in_(["en", "de"]) & ~F["title"].startswith("Draft")``.  ``F.a.b`` and ``F["a.b"]`` are the
path ``a.b``; a key named like one of the methods, or holding odd characters, is reached with brackets.
Python's ``and or not`` and chained comparisons cannot be overloaded and are refused: use ``& | ~``.
"""

from typing import Any, NoReturn

from vecdb.core.errors import InvalidFilter
from vecdb.core.filters import check
from vecdb.core.filters.paths import check_path, join_path
from vecdb.core.filters.text import to_text
from vecdb.core.filters.tree import And, Exists, IsNull, Node, Not, Or


def _no_truth() -> NoReturn:
    raise InvalidFilter("a condition has no truth value of its own: join with & | ~ (not and, or, not), put each "
                        "comparison in parentheses, do not chain comparisons, and use .in_([...]) for 'in'",
                        got="bool()", limit="& | ~")


class Expr:
    """A condition; ``node`` is its tree (checked by ``to_node``)."""

    __slots__ = ("node",)

    def __init__(self, node: Node) -> None:
        self.node = node

    def __and__(self, other: object) -> "Expr":
        return Expr(And((*_parts(self, And), *_parts(_expr(other), And))))

    def __or__(self, other: object) -> "Expr":
        return Expr(Or((*_parts(self, Or), *_parts(_expr(other), Or))))

    def __invert__(self) -> "Expr":
        return Expr(Not(self.node))

    def __bool__(self) -> bool:
        _no_truth()

    def __repr__(self) -> str:
        return f"Expr({to_text(check.check_node(self.node))})"


def _expr(other: object) -> Expr:
    if not isinstance(other, Expr):
        raise InvalidFilter(f"& and | join conditions, not {type(other).__name__}; put each comparison in parentheses",
                            got=type(other).__name__, limit="a condition")
    return other


def _parts(expr: Expr, kind: type[And] | type[Or]) -> tuple[Node, ...]:
    # Flat, so that a long chain of & or | is wide and not deep
    return expr.node.nodes if isinstance(expr.node, kind) else (expr.node,)


class Field:
    """A path to compare; see the module."""

    __slots__ = ("_path",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, key: str) -> "Field":
        if key.startswith("__") and key.endswith("__"):  # what copy, pickle and numpy probe for is no key
            raise AttributeError(key)
        return Field(f"{self._path}.{join_path([key])}")

    def __getitem__(self, path: str) -> "Field":
        return Field(f"{self._path}.{check_path(path)}")

    def __eq__(self, value: object) -> Expr:  # type: ignore[override]
        return Expr(check.compare(self._path, "==", value))

    def __ne__(self, value: object) -> Expr:  # type: ignore[override]
        return Expr(check.compare(self._path, "!=", value))

    def __lt__(self, value: object) -> Expr:
        return Expr(check.compare(self._path, "<", value))

    def __le__(self, value: object) -> Expr:
        return Expr(check.compare(self._path, "<=", value))

    def __gt__(self, value: object) -> Expr:
        return Expr(check.compare(self._path, ">", value))

    def __ge__(self, value: object) -> Expr:
        return Expr(check.compare(self._path, ">=", value))

    def in_(self, values: Any) -> Expr:
        """Equal to any of ``values``."""
        return Expr(check.is_in(self._path, values))

    def not_in(self, values: Any) -> Expr:
        """Equal to none of ``values``."""
        return Expr(Not(check.is_in(self._path, values)))

    def startswith(self, text: str) -> Expr:
        """A string that starts with ``text``."""
        return Expr(check.prefix(self._path, text))

    def contains(self, text: str) -> Expr:
        """A string (or any string of a list) that holds ``text``."""
        return Expr(check.contains(self._path, text))

    def exists(self) -> Expr:
        """The record has the key, be its value null."""
        return Expr(Exists(self._path))

    def is_null(self) -> Expr:
        """The key is there and its value, or an element of it, is null."""
        return Expr(IsNull(self._path))

    def geo_radius(self, lat: float, lon: float, radius_m: float) -> Expr:
        """A point ``{"lat", "lon"}`` within ``radius_m`` metres of (``lat``, ``lon``), degrees."""
        return Expr(check.geo_radius(self._path, lat, lon, radius_m))

    def geo_box(self, south: float, west: float, north: float, east: float) -> Expr:
        """A point in a box, degrees; ``west > east`` crosses the antimeridian."""
        return Expr(check.geo_box(self._path, south, west, north, east))

    def __bool__(self) -> bool:
        _no_truth()

    def __repr__(self) -> str:
        return f"F[{self._path!r}]"


class FieldRoot:
    """The type of ``F``."""

    __slots__ = ()

    def __getattr__(self, key: str) -> Field:
        if key.startswith("__") and key.endswith("__"):
            raise AttributeError(key)
        return Field(check_path(join_path([key])))

    def __getitem__(self, path: str) -> Field:
        return Field(check_path(path))

    def __repr__(self) -> str:
        return "F"


F = FieldRoot()
"""The root of all paths."""
