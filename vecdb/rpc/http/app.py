"""The whole HTTP face as one ASGI application: health, metrics, the OpenAPI document, and REST under ``/v1``."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Final
from urllib.parse import urlsplit

from vecdb.core.access import Role
from vecdb.ports.node import Node
from vecdb.rpc.admin import About, Keys
from vecdb.rpc.door import Guards, tell
from vecdb.rpc.http import collections, queries, records
from vecdb.rpc.http.admin import AdminOperations
from vecdb.rpc.http.background import Background
from vecdb.rpc.http.edge import RestEdge, Scope, Send, authenticate
from vecdb.rpc.http.incoming import Receive
from vecdb.rpc.http.openapi import document
from vecdb.rpc.http.operations import Operation, Routes
from vecdb.rpc.http.page import PAGE, PAGE_POLICY
from vecdb.rpc.http.replies import Refused, Reply, dumps, failure, ok

Metrics = Callable[[str], tuple[str, bytes]]
"""From an Accept header to a content type and a page; runs in a thread."""

Readiness = Callable[[], Sequence[str]]
"""Why the node does not serve, in words; empty when it does."""

_VERBS: Final = ("GET", "HEAD")


_HEALTH: Final = ("/healthz", "/livez", "/readyz")


class HttpApp:
    """Belongs to one event loop.

    ``metrics`` None: there is no such page; ``open_metrics``: it is shown without a key, too.  ``known_host(name)``:
    whether a request may call this node so.  A browser lets a page of any site speak to a name of that site, and that
    name may come to mean this machine; where nothing asks for a key, the name is all that tells such a page.
    ``warnings``: what is amiss while the node is ready.
    """

    def __init__(self, node: Node, guards: Guards, workers: Executor, *, keys: Keys | None, about: About,
                 readiness: Readiness, metrics: Metrics | None, message_bytes: int, open_metrics: bool = False,
                 known_host: Callable[[str], bool] = lambda name: True, warnings: Readiness = list) -> None:
        self._known_host = known_host
        self._guards = guards
        self._about = about
        self._readiness = readiness
        self._warnings = warnings
        self._metrics = metrics
        self._open_metrics = open_metrics
        self._pages: dict[bool, asyncio.Task[tuple[str, bytes]]] = {}
        self.background = Background(guards.deadline_max_s, guards.on_fault)
        self._admin = AdminOperations(keys, about)
        self.operations: list[Operation] = [
            *collections.operations(self.background), *records.operations(), *queries.operations(),
            *self._admin.operations()]
        self._version = str(about()["version"])
        self._document = b""
        self._rest = RestEdge(Routes(self.operations), node, guards, workers, message_bytes)
        self._plain: dict[str, Callable[[Scope], Any]] = {
            "/healthz": self._healthz, "/livez": self._healthz, "/readyz": self._readyz, "/metrics": self._metrics_page,
            "/openapi.json": self._openapi, "/": self._page}

    @property
    def running(self) -> int:
        """REST calls that have begun and not ended."""
        return self._rest.running

    def fault(self, error: BaseException) -> None:
        """Tell of an error that concerns no request."""
        self._guards.on_fault(error, "", "http")

    def _stranger(self, scope: Scope) -> str:
        """The name by which a request should not have come here, or ""; whether the node lives anybody may ask."""
        if scope["path"] in _HEALTH:
            return ""
        for name in (host_of(scope), origin_of(scope)):
            if name and not self._known_host(name):
                return name
        return ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        name = self._stranger(scope)
        known = not name
        plain = self._plain.get(scope["path"])
        if plain is None and known:
            await self._rest(scope, receive, send)
            return
        try:
            if plain is None or not known:
                raise Refused(421, "PERMISSION_DENIED", "MisdirectedRequest", f"this node is not called {name[:100]!r}:"
                              " ask for localhost, give it API keys, or name it in server.http_hosts", host=name[:100])
            if scope["method"] not in _VERBS:
                raise Refused(405, "UNIMPLEMENTED", "MethodNotAllowed", f"{scope['method'][:16]} is not offered here",
                              (("allow", "GET, HEAD"),), allow="GET, HEAD")
            reply = await plain(scope)
        except Exception as error:
            tell(self._guards, error, "", scope["path"])
            reply = failure(error, "").reply
        await _send(scope, reply, send)

    # --- health -----------------------------------------------------------------------------------

    def _health(self) -> dict[str, Any]:
        reasons = list(self._readiness())
        return {"status": "ok", "ready": not reasons, "reasons": reasons, "warnings": list(self._warnings()),
                "version": self._version, "uptime_s": round(self._admin.uptime_s, 3)}

    async def _healthz(self, scope: Scope) -> Reply:
        """200 as long as the loop turns: whether the node serves is for /readyz to say."""
        return ok(self._health())

    async def _readyz(self, scope: Scope) -> Reply:
        told = self._health()
        if told["ready"]:
            return ok(told)
        return ok({**told, "status": "unavailable"}, 503, (("retry-after", "1"),))

    # --- pages ------------------------------------------------------------------------------------

    async def _metrics_page(self, scope: Scope) -> Reply:
        if self._metrics is None:
            raise Refused(404, "NOT_FOUND", "RouteNotFound", "this node keeps no metrics")
        if not self._open_metrics:
            authenticate(self._guards, scope).require(Role.READ)
        accept = next((value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"accept"), "")
        kind, body = await self._made("application/openmetrics-text" in accept, accept)
        return Reply(200, body, kind)

    async def _made(self, openmetrics: bool, accept: str) -> tuple[str, bytes]:
        """A page from a thread; those who ask together get one."""
        assert self._metrics is not None
        task = self._pages.get(openmetrics)
        if task is None:
            task = asyncio.get_running_loop().create_task(asyncio.to_thread(self._metrics, accept))
            self._pages[openmetrics] = task
            task.add_done_callback(lambda _: self._pages.pop(openmetrics, None))
        return await asyncio.shield(task)

    async def _openapi(self, scope: Scope) -> Reply:
        if not self._document:
            self._document = dumps(document(self.operations, self._version))
        return Reply(200, self._document)

    async def _page(self, scope: Scope) -> Reply:
        return Reply(200, PAGE, "text/html; charset=utf-8", (("content-security-policy", PAGE_POLICY),))


def host_of(scope: Scope) -> str:
    """The name by which the request calls this node, without its port, in lower case."""
    text = next((value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"host"), "")
    host = text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]
    return host.lower().rstrip(".")


def origin_of(scope: Scope) -> str:
    """The host of the page that a browser sends the request for, if it is one's."""
    text = next((value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"origin"), "")
    try:
        return (urlsplit(text).hostname or text).lower()
    except ValueError:
        return text


async def _send(scope: Scope, reply: Reply, send: Send) -> None:
    headers = [("content-type", reply.content_type), ("content-length", str(len(reply.body))),
               ("cache-control", "no-store"), ("x-content-type-options", "nosniff"), *reply.headers]
    await send({"type": "http.response.start", "status": reply.status,
                "headers": [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers]})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else reply.body,
                "more_body": False})
