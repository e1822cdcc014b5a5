"""JSON from a peer: read strictly, never deeper, longer or vaguer than said.

orjson is quick and lenient: of equal keys it keeps the last, and an integer of more than 64 bits becomes the nearest
float.  Text that orjson would write again byte for byte has neither (nor blanks, nor NaN), so it is the quick path;
whatever else arrives is read by the standard library's parser with hooks that refuse both.
"""

import json
import re
from typing import Any, Final, NoReturn

import orjson

from vecdb.core.errors import InvalidFilter, InvalidMetadata
from vecdb.core.limits import (
    MAX_FILTER_JSON_BYTES,
    MAX_FILTER_NODES,
    MAX_IN_VALUES,
    MAX_METADATA_BYTES,
    MAX_METADATA_DEPTH,
)
from vecdb.core.metadata import check_metadata

MAX_METADATA_TEXT: Final = 8 * MAX_METADATA_BYTES
"""Longest JSON text of one object before it is made compact: blanks and ``\\u`` escapes take room."""

MAX_FILTER_PARTS: Final = 2 * MAX_IN_VALUES + 8 * MAX_FILTER_NODES
"""Most objects, lists and keys in a filter's JSON: a list of instants has an object and a key for each, a condition up
to four; an object takes fifty times its text in memory, so that they are counted before any is made."""

_WINDOW: Final = 1 << 16
_STRING: Final = re.compile(rb'"[^"]*"?')

dumps: Final = orjson.dumps
_loads = orjson.loads


class _Refused(ValueError):
    """Why a text is not taken."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Refused(f"the key {key[:64]!r} stands twice in one object")
            seen.add(key)
    return out


def _constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant)


def _strict(data: bytes) -> Any:
    """Read JSON, or raise :class:`_Refused` with the reason."""
    try:
        return _DECODER.decode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _Refused(f"is not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise _Refused("is nested too deep") from None
    except _Refused:
        raise
    except ValueError as error:
        raise _Refused(f"is not JSON: {error}") from None


def metadata_from_wire(data: bytes, position: int) -> bytes:
    """Return one record's object as compact JSON, as :func:`~vecdb.core.metadata.check_metadata` writes it."""
    if data == b"{}":
        return data
    if len(data) <= MAX_METADATA_BYTES and data.count(b"{") + data.count(b"[") <= MAX_METADATA_DEPTH:
        try:
            value = _loads(data)
            if type(value) is dict and dumps(value) == data:
                return data
        except (ValueError, TypeError, RecursionError):
            pass  # the reader below says what is wrong
    argument = f"metadata[{position}]"
    if len(data) > MAX_METADATA_TEXT:
        raise InvalidMetadata(argument, f"{len(data)} bytes of JSON, more than {MAX_METADATA_TEXT} (and "
                              f"{MAX_METADATA_BYTES} when compact)", got=len(data), limit=MAX_METADATA_BYTES)
    try:
        parsed = _strict(data)
    except _Refused as error:
        raise InvalidMetadata(argument, str(error), got="bytes", limit="a JSON object") from None
    return check_metadata(parsed, position)


def filter_mapping_from_wire(data: bytes) -> Any:
    """Return the value of a filter's JSON; what it means is checked by ``from_mapping``."""
    if len(data) > MAX_FILTER_JSON_BYTES:
        raise InvalidFilter(f"{len(data)} bytes of JSON, more than {MAX_FILTER_JSON_BYTES}", got=len(data),
                            limit=MAX_FILTER_JSON_BYTES)
    if _parts(data) > MAX_FILTER_PARTS and _has_too_many_parts(data):
        raise InvalidFilter(f"more than {MAX_FILTER_PARTS} objects, lists and keys in its JSON",
                            got=f"> {MAX_FILTER_PARTS}", limit=MAX_FILTER_PARTS)
    try:
        return _strict(data)
    except _Refused as error:
        raise InvalidFilter(f"the JSON {error}" if str(error).startswith("is ") else str(error), got="bytes",
                            limit="a JSON object") from None


def _parts(data: bytes) -> int:
    return data.count(b"{") + data.count(b"[") + data.count(b":")


def _has_too_many_parts(data: bytes) -> bool:
    """Count between strings alone, window by window: a million short strings are a million matches to hold."""
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    found, opened = 0, b""
    for low in range(0, len(plain), _WINDOW):
        part = opened + plain[low:low + _WINDOW]
        opened = b'"' if part.count(b'"') % 2 else b""
        found += _parts(_STRING.sub(b"", part))
        if found > MAX_FILTER_PARTS:
            return True
    return False


def object_from_wire(data: bytes) -> dict[str, Any]:
    """Return the object of a reply's JSON (a plan, details, fields); what is none is empty."""
    if not data:
        return {}
    try:
        value = _loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def object_to_wire(value: dict[str, Any]) -> bytes:
    """Write an object of plain and NumPy values; what has no JSON is written as its text."""
    return dumps(value, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
