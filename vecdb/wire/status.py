"""Errors between processes: a google.rpc.Status with typed details, and back to the class that was raised.

The details are ErrorInfo (for clients of any language), RetryInfo where there is a hint, and vecdb.v1.Error, which
holds what :func:`from_status` needs to make the same error again (its message stands in the status, once).  Trailing
metadata is small by nature (gRPC refuses it above 8 KiB, base64 and the message beside it included), so long messages
are cut, and of fields that are too long the longest.
"""

import asyncio
import errno
import re
from dataclasses import dataclass
from typing import Any, Final

import orjson
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from vecdb.core import errors
from vecdb.core.errors import VecdbError
from vecdb.v1 import types_pb2 as pb
from vecdb.wire.jsons import object_from_wire, object_to_wire

DOMAIN: Final = "vecdb"

MAX_MESSAGE_BYTES: Final = 1_024
MAX_FIELDS_BYTES: Final = 1_536
_MAX_TEXT: Final = 256
_MAX_REQUEST_ID: Final = 128


@dataclass(frozen=True, slots=True)
class _Code:
    """A canonical code: its number, its HTTP status, and the class of an error that says no more than the code."""

    number: int
    http: int
    kind: type[VecdbError]


CODES: Final[dict[str, _Code]] = {
    "CANCELLED": _Code(1, 499, errors.Cancelled),
    "UNKNOWN": _Code(2, 500, errors.OutcomeUnknown),
    "INVALID_ARGUMENT": _Code(3, 400, errors.InvalidArgument),
    "DEADLINE_EXCEEDED": _Code(4, 504, errors.DeadlineExceeded),
    "NOT_FOUND": _Code(5, 404, VecdbError),
    "ALREADY_EXISTS": _Code(6, 409, VecdbError),
    "PERMISSION_DENIED": _Code(7, 403, errors.PermissionDenied),
    "RESOURCE_EXHAUSTED": _Code(8, 429, errors.Overloaded),
    "FAILED_PRECONDITION": _Code(9, 409, VecdbError),
    "ABORTED": _Code(10, 409, errors.Unavailable),
    "OUT_OF_RANGE": _Code(11, 400, errors.InvalidArgument),
    "UNIMPLEMENTED": _Code(12, 501, errors.Unsupported),
    "INTERNAL": _Code(13, 500, VecdbError),
    "UNAVAILABLE": _Code(14, 503, errors.Unavailable),
    "DATA_LOSS": _Code(15, 500, errors.DataCorrupted),
    "UNAUTHENTICATED": _Code(16, 401, errors.Unauthenticated),
}

_HTTP: Final[dict[type[VecdbError], int]] = {errors.StorageFull: 507}
"""Where a class says more than its code."""

_BAD_ARGUMENT: Final[dict[str, Any]] = {"argument": "request", "got": None, "limit": None}

KINDS: Final[dict[type[VecdbError], dict[str, Any]]] = {
    VecdbError: {},
    errors.InvalidArgument: _BAD_ARGUMENT,
    errors.DimensionMismatch: _BAD_ARGUMENT,
    errors.NonFiniteVector: _BAD_ARGUMENT,
    errors.InvalidId: _BAD_ARGUMENT,
    errors.InvalidMetadata: _BAD_ARGUMENT,
    errors.InvalidFilter: {**_BAD_ARGUMENT, "argument": "filter", "position": None},
    errors.LimitExceeded: _BAD_ARGUMENT,
    errors.SchemaChanged: {**_BAD_ARGUMENT, "argument": "collection"},
    errors.StaleCursor: {**_BAD_ARGUMENT, "argument": "after"},
    errors.CollectionNotFound: {"collection": ""},
    errors.CollectionExists: {"collection": ""},
    errors.SnapshotNotFound: {"snapshot": "", "url": ""},
    errors.SnapshotExists: {"snapshot": "", "url": ""},
    errors.DatabaseLocked: {},
    errors.DatabaseClosed: {},
    errors.FormatMismatch: {},
    errors.StorageError: {},
    errors.StorageFull: {},
    errors.StorageReadOnly: {},
    errors.DataCorrupted: {"path": "", "ids": ()},
    errors.OutcomeUnknown: {},
    errors.DeadlineExceeded: {},
    errors.Cancelled: {},
    errors.Unauthenticated: {},
    errors.PermissionDenied: {},
    errors.KeyNotFound: {},
    errors.NodeNotFound: {},
    errors.ShardNotFound: {},
    errors.JobNotFound: {},
    errors.TokenNotFound: {},
    errors.ShardBusy: {},
    errors.Unavailable: {},
    errors.NotLeader: {"leader": None},
    errors.StaleShardMap: {},
    errors.ShardSealed: {},
    errors.NodeRemoved: {},
    errors.NoNodeForReplica: {},
    errors.JoinRefused: {"reason": ""},
    errors.Overloaded: {},
    errors.Unsupported: {},
}
"""Every class that travels, and the fields that it always has."""

_BY_NAME: Final = {kind.__name__: kind for kind in KINDS}
_BY_NUMBER: Final = {code.number: (name, code) for name, code in CODES.items()}
_HUMP: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_TOO_LARGE: Final = re.compile(r"message (is )?larger than|message exceeds", re.IGNORECASE)


def reason_of(kind: type[VecdbError]) -> str:
    """``DimensionMismatch`` as ``DIMENSION_MISMATCH``."""
    return _HUMP.sub("_", kind.__name__).upper()


def _public(error: BaseException, request_id: str) -> VecdbError:
    """The error as a caller may see it: what was not raised on purpose says nothing about the inside."""
    if isinstance(error, VecdbError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return errors.Cancelled("the caller gave the call up")
    if isinstance(error, TimeoutError):
        return errors.DeadlineExceeded("the deadline passed before the work was done")
    if isinstance(error, MemoryError):
        return errors.Overloaded("the server has no memory left for this call", retry_after_s=1.0)
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return errors.Overloaded("the server has no file descriptor left for this call", retry_after_s=1.0)
    if isinstance(error, DecodeError):
        return errors.InvalidArgument("request", "is no message of this method", got="bytes", limit="protobuf")
    hint = f"; its log has the cause under request id {request_id}" if request_id else ""
    return VecdbError(f"an error inside the server{hint}")


def _kind(error: VecdbError) -> type[VecdbError]:
    return next(kind for kind in type(error).__mro__ if kind in KINDS)


def http_status(error: BaseException) -> int:
    """The HTTP status that an error is answered with."""
    kind = _kind(_public(error, ""))
    return _HTTP.get(kind) or CODES[kind.code].http


def to_error(error: BaseException, request_id: str = "") -> pb.Error:
    """Write an error for a stream or for the details of a status; ``message`` and fields are of bounded length."""
    shown = _public(error, request_id)
    kind = _kind(shown)
    return pb.Error(code=CODES[kind.code].number, kind=kind.__name__, message=_cut(shown.message, MAX_MESSAGE_BYTES),
                    retryable=kind.retryable, fields_json=_fields(shown.fields),
                    retry_after_s=_retry_after(shown), request_id=_cut(request_id, _MAX_REQUEST_ID))


def to_status(error: BaseException, request_id: str = "") -> tuple[int, str, bytes]:
    """Return the google.rpc code, the message and the serialized google.rpc.Status of an error."""
    detail = to_error(error, request_id)
    code, message = detail.code, detail.message
    status = status_pb2.Status(code=code, message=message)
    info = error_details_pb2.ErrorInfo(reason=reason_of(_BY_NAME[detail.kind]), domain=DOMAIN)
    argument = _public(error, request_id).fields.get("argument")
    if isinstance(argument, str):
        info.metadata["argument"] = _cut(argument, _MAX_TEXT)
    if detail.request_id:
        info.metadata["request_id"] = detail.request_id
    status.details.add().Pack(info)
    if detail.retry_after_s > 0:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(detail.retry_after_s * 1e9))
        status.details.add().Pack(retry)
    detail.ClearField("message")
    status.details.add().Pack(detail)
    return code, message, status.SerializeToString()


def from_error(msg: pb.Error) -> VecdbError:
    """Return the error that was raised; a class this version does not know becomes the one of its code."""
    kind = _BY_NAME.get(msg.kind)
    fields = object_from_wire(msg.fields_json)
    if kind is None:
        error = _of_code(msg.code, msg.message)
        error.fields.update(fields)
        if msg.kind:
            error.fields["kind"] = msg.kind
    else:
        error = _restore(kind, msg.message, fields)
    if msg.retry_after_s > 0:
        error.fields.setdefault("retry_after_s", msg.retry_after_s)
    if msg.request_id:
        error.add_note(f"request id {msg.request_id}")
    return error


def from_status(code: int, message: str, details: bytes | None) -> VecdbError:
    """Return the error of a status: from its details where they are ours, else by its code."""
    if details:
        try:
            status = status_pb2.Status.FromString(details)
            for detail in status.details:
                if detail.Is(pb.Error.DESCRIPTOR):
                    ours = pb.Error()
                    detail.Unpack(ours)
                    ours.message = ours.message or status.message or message
                    return from_error(ours)
        except (DecodeError, ValueError):
            pass  # somebody else's, or damaged: the code is what there is
    return _of_code(code, message)


def _of_code(number: int, message: str) -> VecdbError:
    name, code = _BY_NUMBER.get(number, ("INTERNAL", CODES["INTERNAL"]))
    kind = code.kind
    text = message or f"the call ended with {name if number in _BY_NUMBER else number}"
    if name == "RESOURCE_EXHAUSTED" and _TOO_LARGE.search(message):
        # The transport's own refusal: the same message will never fit.
        return errors.LimitExceeded("request", text, got="a larger message", limit="the limit of one message")
    error = _restore(kind, text, {})
    if kind is VecdbError and name != "INTERNAL":
        error.fields["code"] = name
    return error


def _restore(kind: type[VecdbError], message: str, fields: dict[str, Any]) -> VecdbError:
    """An error of ``kind`` without its constructor, which words the message anew."""
    error = kind.__new__(kind)
    VecdbError.__init__(error, message)
    error.fields = {**KINDS[kind], **fields}
    if kind is errors.DataCorrupted:
        ids = error.fields["ids"]
        error.fields["ids"] = tuple(one for one in ids if type(one) in (int, str)) if isinstance(ids, list) else ()
    if kind is errors.InvalidFilter and type(error.fields["position"]) is not int:
        error.fields["position"] = None
    return error


def _retry_after(error: VecdbError) -> float:
    value = error.fields.get("retry_after_s")
    return float(value) if isinstance(value, int | float) and 0 < value < 1e9 else 0.0


def _cut(text: str, most: int) -> str:
    """``text`` in at most ``most`` bytes of UTF-8."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= most:
        return data.decode("utf-8")
    return data[:most - 3].decode("utf-8", "ignore") + "…"


def _fields(fields: dict[str, Any]) -> bytes:
    """The fields as JSON: shortened one by one until they fit, the longest first."""
    data = _json(fields)
    if len(data) <= MAX_FIELDS_BYTES:
        return data
    short = dict(fields)
    while len(data) > MAX_FIELDS_BYTES:
        name = max(short, key=lambda one: len(_json({one: short[one]})))
        value = short[name]
        if isinstance(value, list | tuple) and value:
            short[name] = value[:len(value) // 2]
        elif isinstance(value, str) and len(value.encode("utf-8", "replace")) > _MAX_TEXT:
            short[name] = _cut(value, _MAX_TEXT)
        else:
            del short[name]
        data = _json(short)
    return data


def _json(fields: dict[str, Any]) -> bytes:
    try:
        return object_to_wire(fields)
    except (TypeError, ValueError, RecursionError):
        return orjson.dumps({str(name): _cut(repr(value), _MAX_TEXT) for name, value in fields.items()})
