"""From gRPC's errors to ours, and what is known of the call's fate."""

import re
from typing import Any, Final

from vecdb.client.remote.retry import Failed
from vecdb.core.errors import Cancelled, DeadlineExceeded, Unavailable, VecdbError
from vecdb.wire.status import from_status

DETAILS_KEY: Final = "grpc-status-details-bin"
_OURS: Final = b"/vecdb.v1.Error"
"""In the type URL of details that a server of ours sent: it has decided about the call."""

_NOT_SENT: Final = re.compile(r"failed to connect|connections to all backends failing|empty address list|"
                              r"(DNS|name|address) resolution failed|Domain name not found", re.IGNORECASE)
"""The channel had no connection: the call never left."""

_TRANSPORT: Final = re.compile(r"RST_STREAM|stream removed|socket closed|connection (reset|aborted)|GOAWAY|"
                               r"broken pipe|transport (closed|closing)|stream terminated", re.IGNORECASE)
"""Broken connections that gRPC calls INTERNAL, UNKNOWN or CANCELLED."""

_UNDECIDED: Final = frozenset({1, 2, 4, 13, 14, 15})
"""Codes of gRPC's own after which the work may have been done: CANCELLED UNKNOWN DEADLINE INTERNAL UNAVAILABLE LOSS."""


def failure(error: Any, label: str) -> Failed:
    """Read a ``grpc.RpcError`` of either API; ``label`` names the server in messages of our own."""
    code = int(error.code().value[0])
    message = error.details() or ""
    details = None
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            details = value
    if details is not None and _OURS in details:
        typed = from_status(code, message, details)
        return Failed(typed, decided=typed.code not in ("UNKNOWN", "INTERNAL"),
                      transport=isinstance(typed, Unavailable))
    return untyped(code, message, label)


def untyped(code: int, message: str, label: str) -> Failed:
    """A status that gRPC itself made."""
    if code == 14 or (code in (1, 2, 13) and _TRANSPORT.search(message)):
        unsent = bool(_NOT_SENT.search(message))
        what = "cannot be reached" if unsent else "closed the connection"
        error: VecdbError = Unavailable(f"the server {label} {what}: {message[:300]}", target=label)
        return Failed(error, decided=unsent, transport=True)
    if code == 4:
        return Failed(DeadlineExceeded("the deadline passed before the server answered", target=label), decided=False)
    if code == 1:
        return Failed(Cancelled("the call was given up"), decided=False)
    return Failed(from_status(code, message, None), decided=code not in _UNDECIDED)
