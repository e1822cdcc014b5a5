"""A cluster on loopback that grows: coordinators that found it and nodes that join by a token, in one event loop."""

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import vecdb
from tests.replicated_nodes import free_ports, wait_for
from vecdb.cluster.control import ControlState
from vecdb.cluster.control.commands import token_put
from vecdb.cluster.joining import Release, make_token
from vecdb.config import ClusterSettings, EngineSettings, ServerSettings, Settings, TelemetrySettings
from vecdb.core.cluster import Role
from vecdb.core.errors import VecdbError
from vecdb.rpc.peer_certificates import issue
from vecdb.serving.compose import start

COORDINATORS = ("c1", "c2", "c3")


class Grown:
    """Nodes by name, as they run; a context that ends them.

    ``tls``: with certificates of one authority; ``role``: of those that found the cluster.
    """

    def __init__(self, path: Path, *, tls: bool = False, role: str = "coordinator") -> None:
        self.path, self.tls = path, tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="grown", daemon=True)
        self._thread.start()
        ports = free_ports(len(COORDINATORS))
        self.nodes = {name: f"127.0.0.1:{port}" for name, port in zip(COORDINATORS, ports, strict=True)}
        self.settings: dict[str, Settings] = {
            name: self.make(name, nodes=self.nodes, role=role) for name in COORDINATORS}
        self.running: dict[str, Any] = {}
        self.releases: dict[str, Release] = {}
        """What nodes say they are; what is installed where nothing stands here."""

    def make(self, name: str, *, cluster: str = "tests", certificate: str = "", folder: str = "", **options: Any
             ) -> Settings:
        """Settings of a node; ``certificate``: of another name or folder than its own."""
        if self.tls and "cert_file" not in options:
            place = self.path / "certificates"
            issue(place, cluster, [name])
            shown = certificate or name
            options |= {"cert_file": place / f"{shown}.pem", "key_file": place / f"{shown}.key",
                        "ca_file": place / "ca.pem"}
        return Settings(
            data_dir=self.path / (folder or name), engine=EngineSettings(threads=1),
            server=ServerSettings(grpc_port=0, http_port=-1, warm_up=False, drain_s=5.0, node_id=name),
            telemetry=TelemetrySettings(recall_samples_per_minute=0.0),
            cluster=ClusterSettings(name=cluster, heartbeat_s=0.05, election_s_min=0.3, election_s_max=0.6,
                                    balance_leaders=False, **options))

    def joining(self, name: str, token: str, **options: Any) -> Settings:
        (port,) = free_ports(1)
        join = options.pop("join", tuple(self.nodes.values()))
        return self.make(name, join=join, token=token, **{"advertise": f"127.0.0.1:{port}", **options})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(list(self.running))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def do(self, work: Any) -> Any:
        """The result of a coroutine."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def found(self) -> None:
        """Start those that found the cluster, and wait until all have said who they are."""
        self.start(COORDINATORS)
        wait_for(lambda: all(set(COORDINATORS) <= set(self.state(name).nodes) for name in COORDINATORS), "founding")

    def start(self, names: Iterable[str]) -> None:
        for name in names:
            self.running[name] = self.do(start(self.settings[name], release=self.releases.get(name)))

    def stop(self, names: Iterable[str]) -> None:
        for name in list(names):
            self.do(self.running.pop(name).close(2.0))

    def add(self, name: str, settings: Settings) -> None:
        """Start one more."""
        self.settings[name] = settings
        self.start([name])

    def member(self, name: str) -> Any:
        return self.running[name]._member

    def state(self, name: str) -> ControlState:
        state: ControlState = self.member(name).control.state
        return state

    def reasons(self, name: str) -> list[str]:
        async def ask() -> list[str]:
            return list(self.member(name).reasons())

        return list(self.do(ask()))

    def ready(self, *names: str) -> None:
        wait_for(lambda: not any(self.reasons(name) for name in names or self.running), "readiness")

    def leader(self, *, ready: bool = True) -> str:
        """The node that leads the control group; unless ``ready`` is False, one that serves, too."""
        def found() -> str | None:
            for name in self.running:
                status = self.member(name).control.status()
                if status is not None and status.role == "leader" and not (ready and self.reasons(name)):
                    return name
            return None

        return str(wait_for(found, "a leader of the control group"))

    def status(self) -> Any:
        """Of the control group, as its leader has it."""
        return self.member(self.leader()).control.status()

    def propose(self, command: bytes) -> Any:
        """Through the control group's leader, whoever that is, and whatever its readiness says of a test's doings."""
        def once() -> Any:
            replicator = self.member(self.leader(ready=False)).control.replicator
            return self.do(replicator.propose(command, self._loop.time() + 5)) or True

        return wait_for(once, "a command")

    def token(self, *, ttl_s: float = 0.0, roles: Iterable[Role] = (), at_s: float | None = None) -> str:
        """A new token; ``at_s``: when it was made, now unless given."""
        entry, token = make_token(secrets.token_bytes, time.time() if at_s is None else at_s, ttl_s, roles)
        self.propose(token_put(entry))
        return token

    def takes_part(self, *names: str) -> None:
        """Until these nodes' replicas of the control group are members, and have all there is."""
        def all_there() -> bool:
            status = self.status()
            here = {one.rpartition("/")[0]: one for one in (*status.voters, *status.learners)}
            return all(name in here and status.matches.get(here[name], status.commit) >= status.commit
                       for name in names) and not status.joining

        wait_for(all_there, f"membership of {names}")
        self.ready(*names)

    def url(self, name: str) -> str:
        return f"grpc://127.0.0.1:{self.running[name].addresses['grpc_port']}"

    def connect(self, *names: str) -> Any:
        return vecdb.connect("grpc://" + ",".join(self.url(name).removeprefix("grpc://") for name in names))


def quiet(work: Callable[[], Any]) -> VecdbError | None:
    """What it raises, if it does."""
    try:
        work()
    except VecdbError as error:
        return error
    return None
