"""Three nodes of a cluster on loopback: as processes that may be killed, and in one, which is quicker to start.

Times of elections are short, and long enough for a machine with other work.
"""

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import httpx

import vecdb
from vecdb.config import ClusterSettings, EngineSettings, ServerSettings, Settings, TelemetrySettings
from vecdb.core.errors import Unavailable, VecdbError
from vecdb.core.shards import ShardInfo, ShardVerification
from vecdb.serving.compose import start

NAMES = ("n1", "n2", "n3")
START_S = 120.0
_connect = vecdb.connect


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, each another one.

    Below those that the system gives to outgoing connections: while a node is down, one of these might take its port.
    """
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < count:
            port = random.randrange(15_000, 32_000)
            with suppress(OSError):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                found.append(port)
    return found


def wait_for(found: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Ask until the answer is true; what is raised meanwhile counts as no."""
    until, error = time.monotonic() + seconds, None
    while True:
        try:
            answer, error = found(), None
        except (VecdbError, httpx.HTTPError) as raised:
            answer, error = None, raised
        if answer:
            return answer
        assert time.monotonic() < until, f"{what} did not come about in {seconds:g} s: {error or answer}"
        time.sleep(0.05)


def agreed(db: Any, label: str, *, deep: bool = True) -> ShardVerification:
    """What a comparison says once every replica has answered, which all hold the same."""
    found: ShardVerification = wait_for(
        lambda: (one := db.admin.verify_shard(label, deep=deep)).complete and one, f"an answer of all of {label!r}")
    assert found.agree, found
    return found


class Process:
    """One node, by the README's form."""

    def __init__(self, name: str, place: Path, nodes: str, settings: dict[str, Any]) -> None:
        self.name, self.place, self.data = name, place, place / name
        self.port, self.http_port = free_ports(2)
        self.url = f"grpc://127.0.0.1:{self.port}"
        self.log = place / f"{name}.log"
        self._ready = place / f"{name}.ready"
        self._process: subprocess.Popen[bytes] | None = None
        (place / f"{name}.toml").write_text("\n".join([
            f'data_dir = "{self.data}"', "[server]", f'node_id = "{name}"', f"grpc_port = {self.port}",
            f"http_port = {self.http_port}", "drain_s = 5", "warm_up = false",
            "[log]", 'format = "json"', "[telemetry]", "recall_samples_per_minute = 0", "[engine]", "threads = 1",
            "[cluster]", 'name = "tests"', nodes,
            *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]), encoding="utf-8")

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Begin; :meth:`wait` for it."""
        self._ready.unlink(missing_ok=True)
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vecdb.cli", "serve", "--config", str(self.place / f"{self.name}.toml"),
                 "--ready-file", str(self._ready)], stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.place,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})

    def wait(self) -> None:
        """Until it answers; whether others do is another matter."""
        until = time.monotonic() + START_S
        while not self._ready.exists():
            assert self.running, f"{self.name} ended:\n{self.words()}"
            assert time.monotonic() < until, f"{self.name} does not start:\n{self.words()}"
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def readiness(self) -> dict[str, Any]:
        told: dict[str, Any] = httpx.get(f"http://127.0.0.1:{self.http_port}/readyz", timeout=5).json()
        return told

    def kill(self) -> None:
        """SIGKILL, by its id."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, and its end."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(60)

    def words(self, count: int = 4_000) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-count:] if self.log.exists() else ""

    def events(self) -> list[str]:
        """Names of what it has logged."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return [str(json.loads(line).get("event")) for line in lines if line.startswith("{")]


class Processes:
    """The cluster; a context that ends what it has started."""

    def __init__(self, place: Path, **settings: Any) -> None:
        ports = free_ports(len(NAMES))
        nodes = ", ".join(f'{name} = "127.0.0.1:{port}"' for name, port in zip(NAMES, ports, strict=True))
        times = {"heartbeat_s": 0.05, "election_s_min": 0.5, "election_s_max": 1.0, "balance_leaders": False}
        self.nodes = {name: Process(name, place, f"nodes = {{{nodes}}}", times | settings) for name in NAMES}

    def __enter__(self) -> Self:
        try:
            self.start(NAMES)
            self.settled(replicas=False)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for node in self.nodes.values():
            if node.running:
                node.signal(signal.SIGCONT)
                node.kill()
            if error is not None:
                print(f"--- {node.name}:\n{node.words()}")

    def start(self, names: Iterable[str]) -> None:
        for name in names:
            self.nodes[name].start()
        for name in names:
            self.nodes[name].wait()

    @property
    def urls(self) -> str:
        """Of all nodes in one."""
        return "grpc://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes.values())

    def shards(self) -> dict[str, ShardInfo]:
        """As any node sees them that runs."""
        for node in self.nodes.values():
            if node.running:
                with suppress(VecdbError), _connect(node.url, timeout=10) as db:
                    return {one.collection: one for one in db.admin.shards()}
        raise Unavailable("no node answers")

    def leader(self, collection: str) -> str:
        """The node that leads, once one does."""
        def led() -> str | None:
            leader = self.shards()[collection].leader
            return None if leader is None else leader.rpartition("/")[0]

        return str(wait_for(led, f"a leader of {collection!r}"))

    def settled(self, *, replicas: bool = True) -> None:
        """Until all nodes that run are ready, and unless ``replicas`` is False every replica is well and up to date."""
        running = [node for node in self.nodes.values() if node.running]
        wait_for(lambda: all(node.readiness()["ready"] for node in running), "readiness")
        if replicas:
            wait_for(lambda: all(
                shard.leader is not None and len(shard.replicas) == len(NAMES) and all(
                    one.state == "ok" and one.lag == one.behind == 0 and one.role in ("leader", "follower")
                    for one in shard.replicas) for shard in self.shards().values()), "all replicas well", 90.0)


def settings_of(path: Path, **engine: Any) -> list[Settings]:
    """Of three nodes below a folder, each with ports of its own."""
    ports = free_ports(len(NAMES))
    nodes = {name: f"127.0.0.1:{port}" for name, port in zip(NAMES, ports, strict=True)}
    return [Settings(
        data_dir=path / name, engine=EngineSettings(**{"threads": 1, **engine}),
        server=ServerSettings(grpc_port=0, http_port=-1, warm_up=False, drain_s=5.0, node_id=name),
        telemetry=TelemetrySettings(recall_samples_per_minute=0.0),
        cluster=ClusterSettings(name="tests", nodes=nodes, heartbeat_s=0.05, election_s_min=0.3,
                                election_s_max=0.6, balance_leaders=False)) for name in NAMES]


class Together:
    """The same as nodes of one event loop in a thread: nothing to kill, and quick to start."""

    def __init__(self, path: Path, *, settings: Callable[[Settings], Settings] = lambda made: made, **engine: Any
                 ) -> None:
        """``settings``: of each node, from what they would be."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="together", daemon=True)
        self._thread.start()
        self.running: list[Any] = []
        try:
            for one in settings_of(Path(path), **engine):
                self.running.append(self.in_loop(start(settings(one))))
        except BaseException:
            self.stop()
            raise
        self.addresses: list[dict[str, Any]] = [one.addresses for one in self.running]
        self.url = "grpc://" + ",".join(f"127.0.0.1:{one['grpc_port']}" for one in self.addresses)

    def in_loop(self, work: Any) -> Any:
        """The result of a coroutine."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def stop(self) -> None:
        for one in self.running:
            self.in_loop(one.close(5.0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()


class _Open:
    """A database that takes its nodes with it when it closes; ``made``: what collections are made with besides."""

    def __init__(self, nodes: Together, **made: Any) -> None:
        self._nodes = nodes
        self._made = made
        self._database = _connect(nodes.url)

    def create_collection(self, *args: Any, **more: Any) -> Any:
        return self._database.create_collection(*args, **{**self._made, **more})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()
        self._nodes.stop()


def connect_to_three(path: Any, **engine: Any) -> Any:
    """As ``vecdb.connect(path, **engine)``, by way of three nodes."""
    return _Open(Together(path, **engine))


def connect_to_shards(path: Any, **engine: Any) -> Any:
    """The same, each collection in three shards."""
    return _Open(Together(path, **engine), shards=3)
