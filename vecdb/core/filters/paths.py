"""Paths into metadata: keys joined by dots; a dot always nests.

``a.b`` reaches key ``b`` of the object under key ``a``, and nothing else.  A key that itself holds a dot is
written ``a\\.b`` in a path (``F[...]``, the mapping form) or between backticks in an expression; a backslash
in a key is doubled.  A path leads through lists: every object of a list is entered, so ``items.price`` reaches the
price of each item.  A list inside a list is not entered.
"""

import re

from vecdb.core.errors import InvalidFilter
from vecdb.core.limits import MAX_METADATA_BYTES, MAX_METADATA_DEPTH

_SPECIAL = re.compile(r"[\\.]")


def join_path(keys: tuple[str, ...] | list[str]) -> str:
    """Return the canonical path of ``keys``."""
    return ".".join(_SPECIAL.sub(r"\\\g<0>", key) for key in keys)


def split_path(path: str) -> tuple[str, ...]:
    """Return the keys of a path; a backslash before anything but a dot or a backslash stands for itself."""
    if "\\" not in path:
        return tuple(path.split("."))
    keys: list[str] = []
    key: list[str] = []
    at = 0
    while at < len(path):
        char = path[at]
        if char == "\\" and path[at + 1 : at + 2] in ("\\", "."):
            at += 1
            key.append(path[at])
        elif char == ".":
            keys.append("".join(key))
            key.clear()
        else:
            key.append(char)
        at += 1
    keys.append("".join(key))
    return tuple(keys)


def check_path(path: object, position: int | None = None) -> str:
    """Return the canonical form of a path, or raise :class:`InvalidFilter`."""
    if not isinstance(path, str):
        raise InvalidFilter(f"a path must be a str, not {type(path).__name__}", position=position,
                            got=type(path).__name__, limit="str")
    if len(path) > MAX_METADATA_BYTES:
        raise InvalidFilter(f"a path of {len(path)} characters is longer than metadata may be ({MAX_METADATA_BYTES})",
                            position=position, got=len(path), limit=MAX_METADATA_BYTES)
    keys = split_path(path)
    if "" in keys:
        raise InvalidFilter(f"the path {path!r:.100} has an empty part", position=position, got=path[:100],
                            limit="non-empty keys joined by dots")
    if len(keys) > MAX_METADATA_DEPTH:
        raise InvalidFilter(f"a path of {len(keys)} keys is deeper than metadata may nest ({MAX_METADATA_DEPTH})",
                            position=position, got=len(keys), limit=MAX_METADATA_DEPTH)
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidFilter("a path must be valid Unicode (it holds a lone surrogate)", position=position,
                            got="str", limit="UTF-8") from None
    return join_path(keys)
