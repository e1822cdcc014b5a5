"""Pydantic's refusals in this project's words: the member named, and the nearest one that is known."""

import difflib
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from vecdb.core.errors import InvalidArgument, LimitExceeded

M = TypeVar("M", bound=BaseModel)

_LIMITS = frozenset(("greater_than", "greater_than_equal", "less_than", "less_than_equal", "too_long", "too_short",
                     "string_too_long", "string_too_short"))


def check(model: type[M], value: object, where: str = "") -> M:
    """``value`` as a ``model``, or :class:`InvalidArgument` about the first thing wrong with it."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = min(error.errors(include_url=False, include_context=True), key=_order)
        raise _refusal(model, first, where) from None


def _order(error: Any) -> int:
    """A misspelt name is told before what it leaves missing."""
    return {"extra_forbidden": 0, "missing": 2}.get(error["type"], 1)


def _refusal(model: type[BaseModel], error: Any, where: str) -> InvalidArgument:
    argument = _path(where, error["loc"])[:200].encode("utf-8", "backslashreplace").decode()
    kind = error["type"]
    if kind == "extra_forbidden":
        return unknown(argument, str(error["loc"][-1]), _known(model, error["loc"]))
    if kind == "missing":
        return InvalidArgument(argument, "is missing", got="nothing", limit="a value")
    message = str(error["msg"])
    message = message[:1].lower() + message[1:]
    context = error.get("ctx") or {}
    limit = context.get("le", context.get("ge", context.get("max_length", context.get("expected"))))
    got = error.get("input")
    shown = got if isinstance(got, bool | int | float) else type(got).__name__ if not isinstance(got, str) else got[:64]
    refusal = LimitExceeded if kind in _LIMITS else InvalidArgument
    return refusal(argument, message, got=shown, limit=limit)


def _path(where: str, loc: tuple[Any, ...]) -> str:
    out = where
    for part in loc:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else str(part)
    return out or "body"


def _known(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """The members at a place; those of the outer object where it cannot be told."""
    current: Any = model
    for part in loc[:-1]:
        if isinstance(part, str) and part in getattr(current, "model_fields", {}):
            current = _inner(current.model_fields[part].annotation) or current
    return list(current.model_fields)


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as ``list[Grant]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_inner(part) for part in getattr(annotation, "__args__", ()))
    return next((one for one in found if one is not None), None)


def unknown(argument: str, name: str, known: list[str]) -> InvalidArgument:
    """A name that is not known, with the nearest one that is."""
    near = difflib.get_close_matches(name[:100], known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}" if known else ""
    return InvalidArgument(argument, f"is not known here{hint}", got=name[:100].encode("utf-8", "replace").decode(),
                           limit=", ".join(known))


def one_of(given: BaseModel, first: str, second: str) -> str:
    """Which of two members is there, or :class:`InvalidArgument` if it is neither or both."""
    there = [name for name in (first, second) if name in given.model_fields_set]
    if len(there) != 1:
        raise InvalidArgument(first, f"give either {first} or {second}" + (", not both" if there else ""),
                              got="both" if there else "neither", limit=f"one of {first}, {second}")
    return there[0]
