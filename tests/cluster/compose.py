"""Clusters of containers: brought up by the Compose files of ``deploy``, hurt by commands of Docker, always removed.

Each cluster is a Compose project with a name of its own, so that it meets no other; only what carries that name is ever
killed or deleted.  Ports are chosen before, for a container that is started again would get others.
"""

import functools
import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

import httpx

import vecdb
from tests.faults import ROOT
from tests.replicated_nodes import free_ports, wait_for
from vecdb.core.cluster import JobInfo
from vecdb.core.errors import Unavailable, VecdbError
from vecdb.core.shards import ShardInfo

DEPLOY = ROOT / "deploy"
THREE = ("n1", "n2", "n3")
COORDINATORS, SHARD_NODES = ("c1", "c2", "c3"), ("s1", "s2", "s3", "s4")
PEERS = "peers"
OURS = "vecdbtest"


def run(command: Sequence[str], *, seconds: float = 120.0, check: bool = True, environment: dict[str, str] | None = None
        ) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(list(command), capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL,
                          cwd=ROOT, env={**os.environ, **(environment or {})})
    assert not check or done.returncode == 0, f"{' '.join(command)[:300]}: {done.returncode}\n{done.stdout[-3000:]}\n" \
                                              f"{done.stderr[-3000:]}"
    return done


def docker(*arguments: str, seconds: float = 120.0, check: bool = True) -> str:
    return run(["docker", *arguments], seconds=seconds, check=check).stdout.strip()


@functools.cache
def missing() -> str:
    """Why there can be no containers here; empty where there can."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    if run(["docker", "version", "--format", "{{.Server.Version}}"], check=False).returncode:
        return "no Docker engine answers"
    return "" if compose_command() else "neither docker compose nor docker-compose is installed"


@functools.cache
def compose_command() -> tuple[str, ...]:
    if run(["docker", "compose", "version"], check=False).returncode == 0:
        return "docker", "compose"
    return ("docker-compose",) if shutil.which("docker-compose") else ()


@functools.cache
def image() -> str:
    """The image that is tested: the one that VECDB_TEST_IMAGE names, or one made of this tree."""
    if named := os.environ.get("VECDB_TEST_IMAGE"):
        return named
    run([str(ROOT / ".ci" / "image"), f"{OURS}:tree"], seconds=900)
    return f"{OURS}:tree"


class Node:
    """A container, by the name of its service."""

    def __init__(self, project: str, name: str, ports: Sequence[int]) -> None:
        self.project, self.name = project, name
        self.port, self.http_port = ports
        self.cut = False

    @property
    def url(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    @functools.cached_property
    def id(self) -> str:
        found = docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={self.project}", "--filter",
                       f"label=com.docker.compose.service={self.name}").split()
        assert len(found) == 1, f"{self.name}: {len(found)} containers"
        return found[0]

    @property
    def state(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(docker("inspect", "--format", "{{json .State}}", self.id))
        return told

    @property
    def running(self) -> bool:
        return bool(self.state["Running"])

    def start(self) -> None:
        docker("start", self.id)

    def kill(self) -> None:
        """SIGKILL."""
        docker("kill", self.id)

    def stop(self) -> None:
        """SIGTERM, and its end within the time it has to drain."""
        docker("stop", "--time", "40", self.id)
        assert self.state["ExitCode"] == 0, self.words()

    def pause(self) -> None:
        docker("pause", self.id)

    def resume(self) -> None:
        docker("unpause", self.id)

    def disconnect(self, network: str = PEERS) -> None:
        """From the other nodes; clients still reach it."""
        docker("network", "disconnect", f"{self.project}_{network}", self.id)
        self.cut = True

    def connect(self, network: str = PEERS) -> None:
        docker("network", "connect", "--alias", f"{self.name}.{network}", f"{self.project}_{network}", self.id)
        self.cut = False

    def exec(self, *command: str, check: bool = True, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        return run(["docker", "exec", self.id, *command], check=check, seconds=seconds)

    def words(self, count: int = 4_000) -> str:
        done = run(["docker", "logs", "--tail", "200", self.id], check=False)
        return (done.stdout + done.stderr)[-count:]

    def readiness(self) -> dict[str, Any]:
        told: dict[str, Any] = httpx.get(f"http://127.0.0.1:{self.http_port}/readyz", timeout=5).json()
        return told

    @property
    def ready(self) -> bool:
        return bool(self.readiness()["ready"])


class ComposeCluster:
    """The services ``nodes`` of Compose files; a context that takes everything down again.

    ``variables``: for the files, above those that all tests have.
    """

    def __init__(self, files: Sequence[str], nodes: Sequence[str] = THREE, **variables: str) -> None:
        self.project = f"{OURS}{secrets.token_hex(4)}"
        ports = free_ports(2 * len(nodes))
        self.nodes = {name: Node(self.project, name, ports[2 * place:2 * place + 2])
                      for place, name in enumerate(nodes)}
        self._environment = {"IMAGE": image(), "BIND": "127.0.0.1", "ADMIN_KEY": "", "CLUSTER": "tests", "MEMORY": "1g"}
        for node in self.nodes.values():
            self._environment |= {f"{node.name.upper()}_GRPC": str(node.port),
                                  f"{node.name.upper()}_HTTP": str(node.http_port)}
        self._environment |= variables
        self._files = [part for file in files for part in ("-f", str(DEPLOY / file))]
        self.up_s = 0.0

    def compose(self, *arguments: str, seconds: float = 180.0, check: bool = True) -> str:
        return run([*compose_command(), "-p", self.project, *self._files, *arguments], seconds=seconds, check=check,
                   environment=self._environment).stdout.strip()

    def up(self) -> None:
        begun = time.monotonic()
        self.compose("up", "-d", "--no-build")
        self.settled(replicas=False)
        self.up_s = time.monotonic() - begun

    def down(self) -> None:
        """Everything goes, volumes too; what Compose leaves behind is looked for by the project's name."""
        with suppress(AssertionError, subprocess.TimeoutExpired):
            for node in self.nodes.values():
                if node.state["Paused"]:
                    node.resume()
        with suppress(AssertionError, subprocess.TimeoutExpired):
            self.compose("down", "--volumes", "--remove-orphans", "--timeout", "1")
        mine = ("--filter", f"label=com.docker.compose.project={self.project}")
        for what, listed in (("rm", ("ps", "-aq")), ("volume rm", ("volume", "ls", "-q")),
                             ("network rm", ("network", "ls", "-q"))):
            if left := docker(*listed, *mine, check=False).split():
                docker(*what.split(), *(("-f", "-v") if what == "rm" else ()), *left, check=False)

    def __enter__(self) -> Self:
        try:
            self.up()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None:
            self.tell()
        self.down()

    def tell(self) -> None:
        """What the nodes said last, for a test that failed."""
        for node in self.nodes.values():
            with suppress(AssertionError):
                print(f"--- {node.name}: {node.state}\n{node.words()}")

    def heal(self) -> None:
        """Resume, reconnect and start whatever is not as it should be."""
        for node in self.nodes.values():
            if node.state["Paused"]:
                node.resume()
            if node.cut:
                node.connect()
            if not node.running:
                node.start()

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{node.port}" for node in self.nodes.values()]

    @property
    def url(self) -> str:
        """Of all nodes in one."""
        return "grpc://" + ",".join(self.addresses)

    def shards(self, among: Iterable[Node] | None = None) -> list[ShardInfo]:
        """As any of some nodes sees them."""
        for node in among or self.nodes.values():
            with suppress(VecdbError), vecdb.connect(node.url, timeout=5, connect_timeout=2) as database:
                return database.admin.shards()
        raise Unavailable("no node answers")

    def leader(self, collection: str) -> Node:
        """The node that leads a collection's first shard, once one does; of the empty name, the control group."""
        def led() -> str | None:
            found = next((one.leader for one in self.shards() if one.collection == collection), None)
            return None if found is None else found.rpartition("/")[0]

        return self.nodes[str(wait_for(led, f"a leader of {collection or 'the control group'}"))]

    def groups(self, collection: str) -> list[int]:
        """The numbers of a collection's shards."""
        return [shard.group for shard in self.shards() if shard.collection == collection]

    def holders(self, collection: str) -> list[Node]:
        """The nodes with replicas of a collection."""
        names = {one.node.partition("/")[0] for shard in self.shards() if shard.collection == collection
                 for one in shard.replicas}
        return [node for name, node in self.nodes.items() if name in names]

    def follower(self, collection: str) -> Node:
        leader = self.leader(collection)
        return next(node for node in self.holders(collection) if node is not leader)

    def settled(self, *, replicas: bool = True, seconds: float = 120.0) -> float:
        """Until all nodes are ready and, unless ``replicas`` is False, every replica is well and level; how long."""
        begun = time.monotonic()
        self.wait(lambda: all(node.ready for node in self.nodes.values()), "all nodes ready", seconds)
        if replicas:
            self.wait(lambda: all(map(_well, self.shards())), "all replicas well", seconds)
        return time.monotonic() - begun

    def job(self, kind: str, target: str, arguments: Mapping[str, Any] | None = None, *, phase: str = "",
            seconds: float = 120.0) -> float:
        """An operation on the cluster, begun at any node, until it is done, or in a phase; how long it took."""
        begun = time.monotonic()
        self.reaches(self.begin(kind, target, arguments), phase, seconds)
        return time.monotonic() - begun

    def begin(self, kind: str, target: str, arguments: Mapping[str, Any] | None = None) -> int:
        """Its number."""
        with vecdb.connect(self.url, timeout=20.0) as database:
            return database.admin.cluster.begin(kind, target, arguments)

    def reaches(self, number: int, phase: str = "", seconds: float = 120.0) -> JobInfo:
        """An operation once it is in a phase, or done."""
        with vecdb.connect(self.url, timeout=20.0) as database:
            def there() -> JobInfo | None:
                job = database.admin.cluster.job(number)
                over = job.state not in ("waiting", "running", "cancelling")
                return job if over or (phase and job.phase == phase) else None

            job: JobInfo = self.wait(there, f"{phase or 'end'} of job {number}", seconds)
        assert job.state == "done" or (phase and job.phase == phase), job
        return job

    def jobs_ended(self) -> None:
        """Until no operation is under way any more."""
        with vecdb.connect(self.url, timeout=20.0) as database:
            self.wait(lambda: database.admin.cluster.info().jobs == 0, "the end of all jobs", 120.0)

    def wait(self, found: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
        return wait_for(found, what, seconds)

    def verified(self, node: Node | None = None) -> dict[str, Any]:
        """``vecdb shard verify`` in a container: every collection, every replica, records read again."""
        node = node or next(iter(self.nodes.values()))
        done = node.exec("vecdb", "shard", "verify", "--deep", "--json", check=False)
        assert done.returncode == 0, f"exit code {done.returncode}: {done.stdout}\n{done.stderr}"
        told: dict[str, Any] = json.loads(done.stdout)
        return told


def _well(shard: ShardInfo) -> bool:
    return shard.leader is not None and all(
        one.state == "ok" and one.lag == one.behind == 0 and bool(one.role) for one in shard.replicas)
