"""Answers: JSON written in runs, and errors in the one form that every status has."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from vecdb.core.errors import InvalidArgument, Overloaded, VecdbError
from vecdb.wire import status
from vecdb.wire.jsons import object_from_wire, object_to_wire

JSON: Final = "application/json"

RUN_BYTES: Final = 256 << 10
"""About what is written at a time: orjson holds the GIL meanwhile."""


@dataclass(frozen=True, slots=True)
class Reply:
    """``body`` as it is sent; 204 has none."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


class Refused(VecdbError):
    """What HTTP itself refuses: a path, a method, a form.  ``kind``: what ``error.kind`` says."""

    def __init__(self, http: int, code_name: str, kind: str, message: str,
                 headers: tuple[tuple[str, str], ...] = (), **fields: Any) -> None:
        super().__init__(message, **fields)
        self.http = http
        self.code_name = code_name
        self.kind = kind
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as it is answered."""

    http: int
    code: str
    reply: Reply = field(repr=False)


def dumps(value: Any) -> bytes:
    """JSON of plain and NumPy values."""
    return object_to_wire(value)


def runs(items: Sequence[Any], item_bytes: int) -> orjson.Fragment:
    """A long array, written in runs of about :data:`RUN_BYTES`."""
    step = max(1, RUN_BYTES // max(1, item_bytes))
    parts = [dumps(items[low:low + step])[1:-1] for low in range(0, len(items), step)]
    return orjson.Fragment(b"[" + b",".join(parts) + b"]")


def ok(value: Any, http: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    """A reply of JSON."""
    return Reply(http, dumps(value), JSON, headers)


def failure(error: BaseException, request_id: str) -> Failure:
    """The answer to an error; what was not raised on purpose says nothing about the inside."""
    if isinstance(error, Refused):
        shown = {"code": error.code_name, "kind": error.kind, "message": error.message, "retryable": error.http == 503,
                 "fields": error.fields, "request_id": request_id}
        return Failure(error.http, error.code_name, Reply(error.http, dumps({"error": shown}), JSON, error.headers))
    told = status.to_error(error, request_id)
    code = next(name for name, one in status.CODES.items() if one.number == told.code)
    http = status.http_status(error)
    shown = {"code": code, "kind": told.kind, "message": told.message, "retryable": told.retryable,
             "fields": object_from_wire(told.fields_json), "request_id": request_id}
    headers: list[tuple[str, str]] = []
    if told.retry_after_s > 0 or isinstance(error, Overloaded) or http == 503:
        headers.append(("retry-after", str(max(1, math.ceil(told.retry_after_s)))))
    if http == 401:
        headers.append(("www-authenticate", 'Bearer realm="vecdb"'))
    return Failure(http, code, Reply(http, dumps({"error": shown}), JSON, tuple(headers)))


def too_large(got: int | str, limit: int) -> Refused:
    """A body above the limit."""
    return Refused(413, InvalidArgument.code, "LimitExceeded", f"body: {got} bytes, more than {limit}",
                   argument="body", got=got, limit=limit)


def pairs(headers: Mapping[str, str]) -> Iterator[tuple[bytes, bytes]]:
    """As ASGI has them."""
    for name, value in headers.items():
        yield name.encode("latin-1"), value.encode("latin-1", "replace")
