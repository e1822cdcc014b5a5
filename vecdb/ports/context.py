"""Which request a task works for: set by the faces, read by whoever writes a log.

Threads do not inherit it (``asyncio.to_thread`` hands it on, an executor does not).
"""

from contextvars import ContextVar
from typing import Final, NamedTuple


class Request(NamedTuple):
    """What is known of it; "" is not known."""

    request_id: str = ""
    collection: str = ""
    principal: str = ""


_NONE: Final = Request()
_request: ContextVar[Request] = ContextVar("vecdb_request", default=_NONE)


def bind(request_id: str, collection: str = "", principal: str = "") -> None:
    """Name the request that this task works for; the next one replaces it, and the task's end forgets it."""
    _request.set(Request(request_id, collection, principal))


def current() -> Request:
    """The request of this task; its parts are "" where there is none."""
    return _request.get()
