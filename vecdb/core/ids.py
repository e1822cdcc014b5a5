"""Ids of records: integers 0..2**63-1 or non-empty strings of up to 128 bytes of UTF-8.

As a key an id is one tag byte and its bytes: ``b"\\x01"`` + eight bytes big-endian, or ``b"\\x02"`` +
UTF-8, so that keys sort integers by value before strings by code point and never collide.
"""

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vecdb.core.errors import InvalidId
from vecdb.core.limits import MAX_ID_BYTES, MAX_INT_ID

RecordId: TypeAlias = int | str

_INT_TAG = b"\x01"
_STR_TAG = b"\x02"


def check_id(value: object, position: int | None = None) -> RecordId:
    """Return ``value`` as a plain int or str id, or raise :class:`InvalidId` naming its position."""
    argument = "ids" if position is None else f"ids[{position}]"
    if type(value) is int or isinstance(value, np.integer):
        number = int(value)
        if not 0 <= number <= MAX_INT_ID:
            raise InvalidId(argument, f"integer id {number} is outside 0..2**63-1", got="int", limit=MAX_INT_ID)
        return number
    if isinstance(value, str):
        text = str(value)
        if not text:
            raise InvalidId(argument, "a string id must not be empty", got="str", limit=MAX_ID_BYTES)
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError:
            raise InvalidId(argument, "a string id must be valid Unicode (it holds a lone surrogate)",
                            got="str", limit=MAX_ID_BYTES) from None
        if size > MAX_ID_BYTES:
            raise InvalidId(argument, f"a string id of {size} bytes is longer than {MAX_ID_BYTES}",
                            got="str", limit=MAX_ID_BYTES)
        return text
    raise InvalidId(argument, f"an id must be an int or a str, not {type(value).__name__}",
                    got=type(value).__name__, limit="int or str")


def check_ids(values: Iterable[object] | npt.NDArray[Any]) -> list[RecordId]:
    """Check many ids; an integer array is checked as a whole, without a loop per id."""
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise InvalidId("ids", f"an array of ids must have one dimension, not {values.ndim}",
                            got=f"array{values.shape}", limit="(n,)")
        if values.dtype.kind in "iu":
            if values.size and (int(values.min()) < 0 or int(values.max()) > MAX_INT_ID):
                bad = int(np.flatnonzero((values < 0) | (values > MAX_INT_ID))[0])
                check_id(values[bad], bad)
            listed: list[RecordId] = values.tolist()
            return listed
        values = values.tolist()
    elif isinstance(values, str | bytes):
        raise InvalidId("ids", "give a list of ids, not one string", got=type(values).__name__, limit="a sequence")
    return [check_id(value, position) for position, value in enumerate(values)]


def id_key(value: RecordId) -> bytes:
    """Return the sort-preserving key of a checked id."""
    if isinstance(value, int):
        return _INT_TAG + value.to_bytes(8, "big")
    return _STR_TAG + value.encode("utf-8")


def id_from_key(key: bytes) -> RecordId:
    """Inverse of :func:`id_key`."""
    if key[:1] == _INT_TAG:
        return int.from_bytes(key[1:], "big")
    return key[1:].decode("utf-8")
