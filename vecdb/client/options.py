"""Arguments of the public calls: aliases, unknown names, and the small scalar checks.

The SDK alone accepts the other libraries' spellings (``M``, ``efConstruction``, ``ef``, ``top_k``); nothing
below the facade knows them.  An unknown keyword is refused with the nearest known one.
"""

import difflib
import functools
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np

from vecdb.core.calls import Consistency
from vecdb.core.errors import InvalidArgument, InvalidFilter, LimitExceeded
from vecdb.core.filters import Everything, Node, to_node
from vecdb.core.limits import MAX_WORD
from vecdb.core.schema import CollectionSchema, IndexSpec, Metric, VectorType

INDEX_ALIASES: Final = {"M": "m", "efConstruction": "ef_construction", "ef": "ef_search"}
_REMEMBERED_CHARACTERS: Final = 1_024

CREATE_ALIASES: Final = {**INDEX_ALIASES, "dtype": "vector_type"}
QUERY_ALIASES: Final = {"ef": "ef_search", "top_k": "k"}

INDEX_NAMES: Final = tuple(field.name for field in fields(IndexSpec))

_METRIC_HINTS: Final = {
    "angular": "cosine", "cos": "cosine", "euclidean": "l2", "ip": "dot", "inner_product": "dot",
    "innerproduct": "dot", "dotproduct": "dot", "dot_product": "dot", "l2sq": "l2", "bits": "hamming",
}


_CONSISTENCIES: Final = tuple(str(one) for one in Consistency)
_CONSISTENCY_HINTS: Final = {
    "strong": "linearizable", "strict": "linearizable", "quorum": "linearizable", "majority": "linearizable",
    "all": "linearizable", "serializable": "linearizable", "causal": "session", "weak": "eventual", "one": "eventual",
    "local": "eventual", "any": "eventual",
}
"""Words of other systems; each is taken to mean the one that promises no less."""


def near(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` or nothing."""
    found = difflib.get_close_matches(name[:100], list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def refuse_unknown(given: Iterable[str], known: Iterable[str], what: str = "keyword argument") -> None:
    names = list(known)
    for name in given:
        if name not in names:
            hint = near(str(name), names) or f"; known are {', '.join(names) or 'none'}"
            raise InvalidArgument(str(name)[:100], f"unknown {what}{hint}", got=str(name)[:100], limit=", ".join(names))


def resolve(given: Mapping[str, Any], aliases: Mapping[str, str], known: Iterable[str]) -> dict[str, Any]:
    """Translate aliases to their names; refuse unknown names and one thing given under two names."""
    names = list(known)
    refuse_unknown(given, [*names, *aliases])
    out: dict[str, Any] = {}
    for name, value in given.items():
        real = aliases.get(name, name)
        if real in out:
            raise InvalidArgument(real, f"is given twice, as {name!r} too", got=name, limit="one of the names")
        out[real] = value
    return out


def kind_of(value: object) -> str:
    return type(value).__name__


def check_int(argument: str, value: object, low: int, high: int) -> int:
    """Return an integer within bounds; bool and float are refused, NumPy's integers are taken."""
    if type(value) is int and low <= value <= high:  # as nearly always
        return value
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise InvalidArgument(argument, f"must be an integer, not {kind_of(value)}", got=kind_of(value),
                              limit=f"{low}..{high}")
    number = operator.index(value)
    if not low <= number <= high:
        shown = number if abs(number) < 10 ** 20 else "a number"
        raise LimitExceeded(argument, f"{shown} is outside {low}..{high}", got=shown, limit=f"{low}..{high}")
    return number


def check_flag(argument: str, value: object) -> bool:
    if value is False or value is True:
        return value
    if not isinstance(value, bool | np.bool_):
        raise InvalidArgument(argument, f"must be True or False, not {kind_of(value)}", got=kind_of(value),
                              limit="bool")
    return bool(value)


def check_text(argument: str, value: object) -> str:
    """Return a str of up to :data:`MAX_WORD` characters."""
    if not isinstance(value, str):
        raise InvalidArgument(argument, f"must be a str, not {kind_of(value)}", got=kind_of(value), limit="str")
    if len(value) > MAX_WORD:
        raise LimitExceeded(argument, f"a name of {len(value)} characters, more than {MAX_WORD}", got=len(value),
                            limit=MAX_WORD)
    return str(value)


def check_finite(argument: str, value: object) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise InvalidArgument(argument, f"must be a number, not {kind_of(value)}", got=kind_of(value),
                              limit="a finite number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidArgument(argument, "must be finite", got=str(number), limit="a finite number")
    return number


_INCLUDE: Final = {"metadata": "metadata", "vector": "vector", "vectors": "vector"}
_NOTHING: Final[frozenset[str]] = frozenset()


def check_include(value: object) -> frozenset[str]:
    """Return which of ``metadata`` and ``vector`` are wanted; one name alone may be a plain string."""
    if value is None or (type(value) is tuple and not value):
        return _NOTHING
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple | set | frozenset):
        raise InvalidArgument("include", f"must be a sequence of names, not {kind_of(value)}", got=kind_of(value),
                              limit="'metadata', 'vector'")
    for item in items:
        if not isinstance(item, str) or item not in _INCLUDE:
            hint = near(item, _INCLUDE) if isinstance(item, str) else ""
            shown = repr(item[:100]) if isinstance(item, str) else kind_of(item)
            raise InvalidArgument("include", f"unknown name {shown}{hint}", got=shown, limit="'metadata', 'vector'")
    return frozenset(_INCLUDE[item] for item in items)


def check_filter(value: Any) -> Node | None:
    """Parse any of the three forms; None stays None."""
    if type(value) is str and len(value) <= _REMEMBERED_CHARACTERS:
        return _parsed(value)
    return to_node(value)


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> Node | None:
    """A filter's tree cannot be changed, and programs ask the same few over and over."""
    return to_node(text)


def check_some(value: Any) -> Node:
    """Parse a filter that picks what is changed, refusing one that says nothing.

    A forgotten value must not empty a collection: every record is meant only by saying ``"true"``.
    """
    node = to_node(value)
    if node is None or (isinstance(node, Everything) and not isinstance(value, str)):
        raise InvalidFilter("an empty filter would change every record; filter='true' says that this is meant",
                            got="an empty filter", limit="at least one condition, or 'true'")
    return node


def check_choice(argument: str, value: object, known: tuple[str, ...]) -> str:
    """Return one of a few words."""
    if not isinstance(value, str) or value not in known:
        shown = repr(value[:100]) if isinstance(value, str) else kind_of(value)
        raise InvalidArgument(argument, f"{shown} is none of {', '.join(map(repr, known))}", got=shown,
                              limit=", ".join(known))
    return str(value)


def check_consistency(value: object) -> Consistency | None:
    """What a read must have seen; None: as the database was opened with."""
    if value is None or type(value) is Consistency:
        return value
    if isinstance(value, str) and value not in _CONSISTENCIES and value.lower() in _CONSISTENCY_HINTS:
        wanted = _CONSISTENCY_HINTS[value.lower()]
        raise InvalidArgument("consistency", f"{value!r} is unknown; did you mean {wanted!r}?", got=value,
                              limit=", ".join(_CONSISTENCIES))
    return Consistency(check_choice("consistency", value, _CONSISTENCIES))


def _plain(value: object) -> object:
    """NumPy's scalars as Python's, so that a schema holds only what JSON can."""
    return value.item() if isinstance(value, np.generic) else value


def index_spec(index: object, given: Mapping[str, Any]) -> IndexSpec:
    """Make the index from ``index`` (a kind, a dict or an IndexSpec) and the parameters given beside it."""
    parts: dict[str, Any] = {}
    if isinstance(index, IndexSpec):
        if given:
            name = next(iter(given))
            raise InvalidArgument(name, "is part of the IndexSpec in index; give it there", got=name,
                                  limit="index=IndexSpec(...) alone")
        return index
    if isinstance(index, Mapping):
        refuse_unknown([check_text("index", name) for name in index], [*INDEX_NAMES, *INDEX_ALIASES], "key of index")
        parts = resolve(dict(index), INDEX_ALIASES, INDEX_NAMES)
    else:
        parts["kind"] = check_text("index", index)
    for name, value in given.items():
        if name in parts:
            raise InvalidArgument(name, "is given both in index and beside it", got=name, limit="one of the two")
        parts[name] = value
    plain: dict[str, Any] = {name: _plain(value) for name, value in parts.items()}
    for name, argument in (("kind", "index"), ("quantization", "quantization")):
        if name in plain:
            plain[name] = check_text(argument, plain[name])
    if "vectors_on_disk" in plain:
        check_flag("vectors_on_disk", plain["vectors_on_disk"])
    if "oversample" in plain:
        check_finite("oversample", plain["oversample"])
    return IndexSpec(**plain)


def check_metric(metric: object) -> str:
    if isinstance(metric, str) and metric.lower() in _METRIC_HINTS:
        wanted = _METRIC_HINTS[metric.lower()]
        raise InvalidArgument("metric", f"unknown value {metric!r}; did you mean {wanted!r}?", got=metric,
                              limit=", ".join(Metric))
    return check_text("metric", metric)


def check_vector_type(value: object) -> str:
    """Accept the names, and NumPy's dtypes of the same names (``np.float32``)."""
    if isinstance(value, str):
        return check_text("vector_type", value)
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return np.dtype(value).name
    raise InvalidArgument("vector_type", f"must be a str, not {kind_of(value)}", got=kind_of(value),
                          limit=", ".join(VectorType))


def check_indexed_fields(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise InvalidArgument("indexed_fields", f"must be a list of dotted paths, not {kind_of(value)}",
                              got=kind_of(value), limit="a list of str")
    for path in value:
        check_text("indexed_fields", path)
    return tuple(value)


@dataclass(frozen=True, slots=True)
class Difference:
    """One setting in which a wanted schema and an existing one disagree."""

    name: str
    wanted: Any
    existing: Any

    def __str__(self) -> str:
        return f"{self.name} is {_shown(self.existing)}, not {_shown(self.wanted)}"


def _shown(value: object) -> str:
    return str(value) if isinstance(value, str) else repr(value)


def differences(wanted: CollectionSchema, existing: CollectionSchema) -> list[Difference]:
    """Every setting in which two schemas disagree, the index's by their own names."""
    out = []
    for field in fields(CollectionSchema):
        mine, theirs = getattr(wanted, field.name), getattr(existing, field.name)
        if field.name == "index":
            out += [Difference(name, getattr(mine, name), getattr(theirs, name)) for name in INDEX_NAMES
                    if getattr(mine, name) != getattr(theirs, name)]
        elif mine != theirs:
            out.append(Difference(field.name, mine, theirs))
    return out
