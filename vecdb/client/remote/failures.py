"""From gRPC's errors to ours, and what is known of the call's fate."""

import re
from collections.abc import Callable
from typing import Any, Final

from vecdb.client.remote.retry import Failed
from vecdb.core.errors import Cancelled, DeadlineExceeded, NodeRemoved, NoNodeForReplica, Unavailable, VecdbError
from vecdb.wire.status import from_status

DETAILS_KEY: Final = "grpc-status-details-bin"
REFUSED_KEY: Final = "vecdb-refused"
"""Of a node's peer port: why it does not listen to the node that called; nothing was done."""
_OURS: Final = b"/vecdb.v1.Error"
"""In the type URL of details that a server of ours sent: it has decided about the call."""

_NOT_SENT: Final = re.compile(r"failed to connect|connections to all backends failing|empty address list|"
                              r"(DNS|name|address) resolution failed|Domain name not found", re.IGNORECASE)
"""The channel had no connection: the call never left."""

_TRANSPORT: Final = re.compile(r"RST_STREAM|stream removed|socket closed|connection (reset|aborted)|GOAWAY|"
                               r"broken pipe|transport (closed|closing)|stream terminated|internal error from core|"
                               r"^cancelled$", re.IGNORECASE)
"""Broken connections that gRPC calls INTERNAL, UNKNOWN or CANCELLED.  The last but one is what grpc.aio says of a write
to a stream that is broken, the last what a call comes to that the server cut off; calls that were given up here have
more words."""

_HOPELESS: Final = re.compile(r"connection refused|no such file or directory|tls handshake failed|"
                              r"verification check failed", re.IGNORECASE)
"""Nothing listens there, or what does will not come to terms: to wait for longer than a restart is no use."""

_UNDECIDED: Final = frozenset({1, 2, 4, 13, 14, 15})
"""Codes of gRPC's own after which the work may have been done: CANCELLED UNKNOWN DEADLINE INTERNAL UNAVAILABLE LOSS."""


Hint = Callable[[str], str]
"""From gRPC's words about a connection that did not come about to what may be done, or nothing."""


def no_hint(message: str) -> str:
    return ""


def tls_hint(secure: bool, certified: bool) -> Hint:
    """For a client that speaks TLS or does not, with a certificate of its own or without.

    gRPC's words for a disagreement about TLS rarely name it: a peer that hears what it does not understand hangs up.
    """
    def hint(message: str) -> str:
        words = message.lower()
        closed = "socket closed" in words or "connection reset" in words or "broken pipe" in words
        if not secure:
            return "the connection was closed before a word was said: does the server speak TLS? try grpcs://…" \
                if closed else ""
        if "wrong_version_number" in words or "http_request" in words:
            return "TLS handshake failed: what answers there does not speak TLS; grpc://… is without"
        if "certificate_verify_failed" in words:
            return "TLS handshake failed: no authority known here signed the server's certificate; ca_file= names one"
        if "hostname verification" in words:
            return "TLS: the server's certificate carries another name; server_name= says which to expect"
        if not closed:
            return "TLS handshake failed" if "handshake" in words else ""
        if certified:
            return "the connection was closed after the TLS handshake: does the server accept this client's " \
                "certificate (its authority, its dates)?"
        return "the connection was closed after the TLS handshake: does the server ask for a client's certificate? " \
            "cert_file= and key_file= give one"

    return hint


def hopeless(error: VecdbError) -> bool:
    """Whether waiting longer will hardly help: nothing listens, or TLS is not agreed upon."""
    return bool(_HOPELESS.search(error.message))


def refused(error: VecdbError) -> bool:
    """Whether nothing listens at the address (of several addresses of a name: at the one tried last)."""
    return "connection refused" in error.message.lower()


def failure(error: Any, label: str, hint: Hint = no_hint) -> Failed:
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
                      transport=_elsewhere(typed), answered=True)
    if (why := next((value for key, value in error.trailing_metadata() or () if key == REFUSED_KEY), None)) is not None:
        return _refused_node(str(why), message, label)
    return untyped(code, message, label, hint)


def _elsewhere(error: VecdbError) -> bool:
    """Whether another node may answer what one would not."""
    return (isinstance(error, Unavailable) and not isinstance(error, NoNodeForReplica)) \
        or bool(error.fields.get("elsewhere"))


def _refused_node(why: str, message: str, label: str) -> Failed:
    """A node was asked by another, whom it takes for none of its cluster (or not for the one it says it is)."""
    told: Unavailable
    if why == "removed":
        told = removed = NodeRemoved(f"the server {label} says: {message[:300]}", target=label)
        removed.here = True
    else:
        told = Unavailable(f"the server {label} refuses this node: {message[:300]}", target=label)
    return Failed(told, decided=True, transport=True)


def untyped(code: int, message: str, label: str, hint: Hint = no_hint) -> Failed:
    """A status that gRPC itself made."""
    if code == 14 or (code in (1, 2, 13) and _TRANSPORT.search(message)):
        unsent = bool(_NOT_SENT.search(message))
        what = "cannot be reached" if unsent else "closed the connection"
        advice = hint(message) if unsent else ""
        told = f"{advice} ({message[:300]})" if advice else message[:300]
        error: VecdbError = Unavailable(f"the server {label} {what}: {told}", target=label)
        return Failed(error, decided=unsent, transport=True)
    if code == 4:
        return Failed(DeadlineExceeded("the deadline passed before the server answered", target=label), decided=False)
    if code == 1:
        return Failed(Cancelled("the call was given up"), decided=False)
    return Failed(from_status(code, message, None), decided=code not in _UNDECIDED)
