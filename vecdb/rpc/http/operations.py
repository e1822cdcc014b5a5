"""What the REST API can do: one table, from which requests are routed and the OpenAPI document is written."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, ConfigDict

from vecdb.core.access import Principal, Role
from vecdb.core.calls import Call
from vecdb.core.errors import InvalidArgument
from vecdb.ports.node import Node
from vecdb.rpc.http.bodies import LONG_BYTES
from vecdb.rpc.http.replies import Refused, Reply

T = TypeVar("T")

_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_SHAPES: Final = {"id": "(.+)"}
"""A record's id may hold anything, slashes too; other parameters hold no ':' either, which begins a verb."""


class NoParams(BaseModel):
    """An operation without parameters of its own."""

    model_config = ConfigDict(extra="forbid")


@dataclass(slots=True, eq=False)
class Request:
    """One call of an operation: parameters checked, the body read but not parsed.

    ``noted``: what the operation adds to its arguments in the audit log.
    """

    node: Node
    call: Call
    principal: Principal
    workers: Executor
    path: dict[str, str]
    params: Any = None
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    noted: dict[str, Any] = field(default_factory=dict)

    async def apart(self, size: int, work: Callable[..., T], *args: Any) -> T:
        """``work(*args)``: here if it handles few bytes, else in a thread."""
        if size < LONG_BYTES // 4:
            return work(*args)
        return await asyncio.get_running_loop().run_in_executor(self.workers, work, *args)


@dataclass(frozen=True, slots=True)
class Operation:
    """``name`` is the method as in gRPC (``Service/Method``), for metrics and the audit log.

    ``bodies``: the models one of which the body must be; none: no body.  ``replies``: model by status, None: no
    content.  ``role`` is needed on the collection in the path, or on the whole server if there is none; None: any
    caller.  ``write``: it takes an Idempotency-Key.
    """

    verb: str
    path: str
    id: str
    name: str
    summary: str
    tag: str
    handle: Callable[[Request], Awaitable[Reply]]
    replies: dict[int, type[BaseModel] | None]
    role: Role | None = Role.READ
    bodies: tuple[type[BaseModel], ...] = ()
    optional_body: bool = False
    params: type[BaseModel] = NoParams
    errors: tuple[int, ...] = ()
    write: bool = False
    audited: bool = False
    long: bool = False


class Routes:
    """Operations by path."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = tuple(operations)
        paths: dict[str, dict[str, Operation]] = {}
        for one in operations:
            paths.setdefault(one.path, {})[one.verb] = one
        # The most specific first: fewer parameters, then verbs before what they are verbs of.
        order = sorted(paths, key=lambda path: (path.count("{"), -path.count(":"), path))
        self._paths = [(_pattern(path), paths[path]) for path in order]

    def find(self, verb: str, raw_path: bytes) -> tuple[Operation, dict[str, str]]:
        """The operation and the decoded parameters of its path; Refused with 404 or 405."""
        try:
            text = raw_path.decode("ascii")
        except UnicodeDecodeError:
            raise InvalidArgument("path", "holds bytes that must be percent-encoded", got="bytes",
                                  limit="ASCII") from None
        for pattern, operations in self._paths:
            if (found := pattern.fullmatch(text)) is None:
                continue
            operation = operations.get("GET" if verb == "HEAD" else verb)
            if operation is None:
                allowed = ", ".join(sorted(operations) + (["HEAD"] if "GET" in operations else []))
                raise Refused(405, "UNIMPLEMENTED", "MethodNotAllowed", f"{verb[:16]} is not offered here",
                              (("allow", allowed),), allow=allowed)
            return operation, {name: decode(name, value) for name, value in found.groupdict().items()}
        raise Refused(404, "NOT_FOUND", "RouteNotFound", "there is nothing at this path; /openapi.json says what there "
                      "is")


def decode(name: str, value: str) -> str:
    """A percent-encoded part of a URL; invalid UTF-8 is refused, not replaced."""
    try:
        return unquote_to_bytes(value).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidArgument(name, "is not UTF-8 when decoded", got="bytes", limit="percent-encoded UTF-8") from None


def _pattern(path: str) -> re.Pattern[str]:
    out, low = "", 0
    for found in _PARAMETER.finditer(path):
        shape = _SHAPES.get(found[1], "([^/:]+)")
        out += re.escape(path[low:found.start()]) + f"(?P<{found[1]}>{shape[1:]}"
        low = found.end()
    return re.compile(out + re.escape(path[low:]))
