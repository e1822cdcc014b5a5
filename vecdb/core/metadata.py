"""Metadata of a record: a JSON object, checked once and kept as compact JSON.

Kept is what JSON can say: objects with string keys, lists, strings, integers of 64 bits (signed or unsigned), finite
floats, booleans, null.  On the way in NumPy scalars become the plain value, tuples lists, and datetimes RFC 3339
strings (without zone: UTC).  A key may be any string; how a path reaches one that holds a dot says
:mod:`vecdb.core.filters.paths`.
"""

import datetime as dt
from typing import Any, NoReturn

import numpy as np
import orjson

from vecdb.core.errors import InvalidMetadata
from vecdb.core.filters.paths import join_path
from vecdb.core.filters.times import datetime_text
from vecdb.core.limits import MAX_METADATA_BYTES, MAX_METADATA_DEPTH

_INT_MIN = -(1 << 63)
_INT_MAX = (1 << 64) - 1
_KINDS = "object, list, str, int, float, bool, null, datetime"
_PLAIN = frozenset((str, int, bool, type(None)))
_SHOWN = 100
"""Characters of a key that an error repeats; a hostile path may hold megabytes."""
_dumps = orjson.dumps


def check_metadata(value: object, position: int | None = None) -> bytes:
    """Return the compact JSON of a metadata object.

    ``position``: its place in a batch, for the error.  Raises :class:`InvalidMetadata` that names
    ``metadata[position].path``, the kind found there and the limit; ``value`` is only read.
    """
    if type(value) is dict:
        for item in value.values():
            kind = type(item)
            # x - x is 0 for every finite float and NaN for the others, which orjson would write as null
            if kind not in _PLAIN and (kind is not float or item - item != 0.0):
                break
        else:
            try:
                data = _dumps(value)
            except TypeError:  # a key that is no str, an integer over 64 bits, a surrogate: say which
                return _slow(value, position)
            if len(data) > MAX_METADATA_BYTES:
                _too_large(len(data), position)
            return data
    return _slow(value, position)


def parse_metadata(data: bytes) -> dict[str, Any]:
    """Return the object of bytes made by :func:`check_metadata`."""
    value: dict[str, Any] = orjson.loads(data)
    return value


def _slow(value: object, position: int | None) -> bytes:
    walk = _Walk(position)
    if not isinstance(value, dict):
        walk.refuse((), f"must be an object (dict), not {type(value).__name__}", type(value).__name__, "dict")
    data = _dumps(walk.convert(value, ()))
    if len(data) > MAX_METADATA_BYTES:
        _too_large(len(data), position)
    return data


def _argument(position: int | None) -> str:
    return "metadata" if position is None else f"metadata[{position}]"


def _too_large(size: int, position: int | None) -> NoReturn:
    raise InvalidMetadata(_argument(position), f"{size} bytes as compact JSON, more than {MAX_METADATA_BYTES}",
                          got=size, limit=MAX_METADATA_BYTES)


class _Walk:
    """Converts one object; ``items`` bounds the work on something far too large."""

    __slots__ = ("items", "position")

    def __init__(self, position: int | None) -> None:
        self.position = position
        self.items = 0

    def refuse(self, keys: tuple[str, ...], message: str, got: Any, limit: Any) -> NoReturn:
        base = _argument(self.position)
        where = f"{base}.{join_path([key[:_SHOWN] for key in keys])}"[:4 * _SHOWN] if keys else base
        raise InvalidMetadata(where.encode("utf-8", "backslashreplace").decode("utf-8"), message, got=got, limit=limit)

    def convert(self, value: Any, keys: tuple[str, ...]) -> Any:
        self.items += 1
        if self.items > MAX_METADATA_BYTES:  # every item takes a byte at least
            _too_large(self.items, self.position)
        if isinstance(value, np.generic):
            value = self._from_numpy(value, keys)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._string(value, keys)
        if isinstance(value, int):
            number = int(value)
            if not _INT_MIN <= number <= _INT_MAX:
                self.refuse(keys, "an integer outside -2**63..2**64-1", "int", "-2**63..2**64-1")
            return number
        if isinstance(value, float):
            real = float(value)
            if real - real != 0.0:
                self.refuse(keys, f"{real} is not a finite number", "float", "finite")
            return real
        if isinstance(value, dt.date):
            return datetime_text(value)
        if isinstance(value, dict | list | tuple):
            return self._container(value, keys)
        return self.refuse(keys, f"a value of type {type(value).__name__} is not JSON", type(value).__name__, _KINDS)

    def _from_numpy(self, value: np.generic, keys: tuple[str, ...]) -> Any:
        plain = value.astype("datetime64[us]").item() if isinstance(value, np.datetime64) else value.item()
        if plain is None or isinstance(plain, np.generic) or (isinstance(plain, int) and
                                                              isinstance(value, np.datetime64)):
            self.refuse(keys, f"a NumPy {value.dtype} value {value} is not JSON", str(value.dtype), _KINDS)
        return plain

    def _container(self, value: Any, keys: tuple[str, ...]) -> Any:
        if len(keys) >= MAX_METADATA_DEPTH:
            self.refuse(keys[:4], f"nested deeper than {MAX_METADATA_DEPTH} levels", type(value).__name__,
                        MAX_METADATA_DEPTH)
        if not isinstance(value, dict):
            return [self.convert(item, (*keys, str(place))) for place, item in enumerate(value)]
        out: dict[str, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                self.refuse(keys, f"a key must be a str, not {type(key).__name__}", type(key).__name__, "str")
            name = self._string(key, keys)
            out[name] = self.convert(item, (*keys, name))
        return out

    def _string(self, text: str, keys: tuple[str, ...]) -> str:
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError:
            self.refuse(keys, "a string must be valid Unicode (it holds a lone surrogate)", "str", "UTF-8")
        if size > MAX_METADATA_BYTES:
            self.refuse(keys, f"a string of {size} bytes, more than {MAX_METADATA_BYTES}", "str", MAX_METADATA_BYTES)
        return str.__str__(text)
