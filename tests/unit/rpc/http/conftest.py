"""The HTTP face over the in-memory node, asked in this process."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson
import pytest

from tests.fake_node import FakeNode
from vecdb.core.access import ANONYMOUS, Grant, Key, Principal, Role
from vecdb.core.errors import KeyNotFound, Overloaded, Unauthenticated
from vecdb.ports.observer import NullObserver, Refusal
from vecdb.rpc.door import Guards
from vecdb.rpc.http import HttpApp

PRINCIPALS = {
    "admin": Principal("aaaaaaaaaaaa", "admin", (Grant(Role.ADMIN),)),
    "writer": Principal("bbbbbbbbbbbb", "writer", (Grant(Role.WRITE, ("docs*",)),)),
    "reader": Principal("cccccccccccc", "reader", (Grant(Role.READ, ("docs",)),)),
}


class Door:
    """Authenticator, rates and budget in one; open until ``closed``."""

    def __init__(self) -> None:
        self.closed = False
        self.full = False
        self.held = 0
        self.most = 64 << 20
        self.peers: list[tuple[str, str]] = []

    def check(self, metadata: Any, peer: str, certificate: str = "") -> Principal:
        self.peers.append((peer, certificate))
        if not self.closed:
            return ANONYMOUS
        given = dict(metadata).get("authorization", "").removeprefix("Bearer ")
        if given not in PRINCIPALS:
            raise Unauthenticated("the API key is not known here", reason="unknown")
        return PRINCIPALS[given]

    def take(self, principal: Principal, *rest: Any) -> None:
        if self.full:
            raise Overloaded("too many calls", retry_after_s=1.5)

    def acquire(self, size: int) -> None:
        if self.held + size > self.most:
            raise Overloaded("too many bytes", retry_after_s=0.1)
        self.held += size

    def release(self, size: int) -> None:
        self.held -= size


class Log:
    """The audit log."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def record(self, **line: Any) -> None:
        self.lines.append(line)


class Watch(NullObserver):
    """Notes how calls ended."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str, str]] = []
        self.turned_away: list[Refusal] = []

    def call_ended(self, method: str, began: float, collection: str, code: str, bytes_in: int,
                   bytes_out: int) -> float:
        self.ended.append((method, collection, code))
        return 0.0

    def refused(self, reason: Refusal) -> None:
        self.turned_away.append(reason)


class Keys:
    """A key ring without secrets."""

    def __init__(self) -> None:
        self.keys: dict[str, Key] = {}

    def create(self, name: str, grants: Any, ttl_s: float = 0.0) -> tuple[Key, str]:
        end = "".join("abcdefghij"[int(digit)] for digit in f"{len(self.keys):04d}")
        key = Key("zzzzzzzz" + end, name, tuple(grants), 1.0, ttl_s)
        self.keys[key.id] = key
        return key, f"vdb_{key.id}_{'a' * 52}"

    def _get(self, id: str) -> Key:
        if id not in self.keys:
            raise KeyNotFound("no API key of that id", id=id)
        return self.keys[id]

    def rotate(self, id: str, overlap_s: float = 0.0) -> tuple[Key, str]:
        return self._get(id), f"vdb_{id}_{'b' * 52}"

    def revoke(self, id: str) -> Key:
        return self._get(id)

    def list(self) -> list[Key]:
        return list(self.keys.values())


def _page(accept: str) -> tuple[str, bytes]:
    if "openmetrics" in accept:
        return "application/openmetrics-text", b"# EOF\n"
    return "text/plain; version=0.0.4", b"x 1\n"


@dataclass
class Face:
    """The application with everything it stands on; ``ask`` is one request on an event loop of its own."""

    node: FakeNode
    door: Door
    audit: Log
    watch: Watch
    keys: Keys
    workers: ThreadPoolExecutor
    faults: list[BaseException] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    message_bytes: int = 8 << 20
    concurrent_calls: int = 64
    deadline_s: float = 20.0

    def app(self) -> HttpApp:
        guards = Guards(self.door, self.door, self.door, self.audit, self.watch,
                        lambda error, request_id, method: self.faults.append(error),
                        concurrent_calls=self.concurrent_calls, deadline_s=self.deadline_s, deadline_max_s=60.0)
        return HttpApp(self.node, guards, self.workers, keys=self.keys, readiness=lambda: self.reasons,
                       about=lambda: {"version": "1.2.3", "node_id": "n1", "limits": {}},
                       message_bytes=self.message_bytes, metrics=_page)

    def ask(self, verb: str, path: str, json: Any = None, *, content: bytes | None = None,
            headers: dict[str, str] | None = None) -> httpx.Response:
        return asyncio.run(self.asked(self.app(), verb, path, json, content=content, headers=headers))

    async def asked(self, app: HttpApp, verb: str, path: str, json: Any = None, *, content: bytes | None = None,
                    headers: dict[str, str] | None = None) -> httpx.Response:
        sent = dict(headers or {})
        if json is not None:
            content = orjson.dumps(json, option=orjson.OPT_SERIALIZE_NUMPY)
        if content is not None:
            sent.setdefault("content-type", "application/json")
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
            response = await client.request(verb, path, content=content, headers=sent)
        assert self.door.held == 0, "bytes stay in the budget"
        return response

    def docs(self, dim: int = 2, metric: str = "l2", **more: Any) -> None:
        """A collection named docs with a few records; 7 and "7" are two of them."""
        response = self.ask("POST", "/v1/collections", {"name": "docs", "dim": dim, "metric": metric, **more})
        assert response.status_code == 201, response.text
        if dim == 2:
            response = self.ask("POST", "/v1/collections/docs/records", {
                "ids": [7, "7", "a/b"], "vectors": [[0, 0], [3, 4], [6, 8]],
                "metadata": [{"year": 2020}, {"year": 2021}, None]})
            assert response.json()["inserted"] == 3, response.text


@contextmanager
def opened() -> Iterator[Face]:
    with ThreadPoolExecutor(2) as workers:
        door = Door()
        made = Face(FakeNode(), door, Log(), Watch(), Keys(), workers)
        yield made
        assert not made.faults, made.faults
        assert door.held == 0


@pytest.fixture
def face() -> Iterator[Face]:
    with opened() as made:
        yield made
