"""Filters on metadata: three ways to write one, one tree, one meaning.

``tree`` is the tree; ``parse`` reads expressions, ``builder`` is ``F``, ``mapping`` the ``$op`` form; ``to_text``
writes the expression that parses back to the same tree (a filter's stored form).  ``evaluate`` is the meaning: what a
tree says of one record's metadata.  Every way in goes through ``check``, so the three forms obey the same typing rules
and limits.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

from vecdb.core.errors import InvalidFilter
from vecdb.core.filters.builder import Expr, F, Field
from vecdb.core.filters.check import check_node
from vecdb.core.filters.evaluate import evaluate, predicate
from vecdb.core.filters.mapping import from_mapping, to_mapping
from vecdb.core.filters.parse import parse
from vecdb.core.filters.text import to_text
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
    paths_of,
)

FilterLike: TypeAlias = str | Expr | Node | Mapping[str, Any]
"""What a caller may give as a filter."""


def to_node(value: FilterLike | None) -> Node | None:
    """Return the tree of a filter in any form, None for None, or raise :class:`InvalidFilter`."""
    if value is None:
        return None
    if isinstance(value, str):
        return parse(value)
    if isinstance(value, Expr):
        return check_node(value.node)
    if isinstance(value, Mapping):
        return from_mapping(value)
    if isinstance(value, Field):
        raise InvalidFilter("a field alone is no condition: compare it, or use .exists()", got="Field",
                            limit="a condition")
    if isinstance(value, Node):
        return check_node(value)
    raise InvalidFilter(f"a filter is an expression, a condition of F, a mapping or a tree, not {type(value).__name__}",
                        got=type(value).__name__, limit="str, Expr, Mapping or Node")


__all__ = [
    "And", "Compare", "Contains", "Everything", "Exists", "Expr", "F", "Field", "FilterLike", "GeoBox", "GeoRadius",
    "In", "IsNull", "Node", "Not", "Op", "Or", "Prefix", "Time", "check_node", "evaluate", "from_mapping", "parse",
    "paths_of", "predicate", "to_mapping", "to_node", "to_text",
]
