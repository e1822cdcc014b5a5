"""The command line over the in-memory double, in this process."""

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

import vecdb
from tests.memory_backend import MemoryBackend
from vecdb.cli import main
from vecdb.client.database import Database
from vecdb.core.access import Grant, Key
from vecdb.core.cluster import HASH_SPACE
from vecdb.core.errors import CollectionNotFound, KeyNotFound, Unsupported
from vecdb.core.shard_map import NodeRoute, ShardMap, ShardRoute
from vecdb.core.shards import ReplicaInfo, ShardInfo, ShardVerification


class Lasting(MemoryBackend):
    """Stays open between commands, as a directory does, and answers as a server what only a server is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.equal = True
        self.keys: dict[str, Key] = {}
        self.shard_list: list[ShardInfo] | None = None
        self.verified: dict[str, ShardVerification] = {}
        self.handed: list[tuple[str, str | None]] = []
        self.operated: dict[str, Any] | None = None
        self.asked: list[tuple[Any, ...]] = []
        self.about: dict[str, Any] = {"version": "0.1.0", "node_id": "n1", "uptime_s": 7.0}

    def close(self) -> None:
        """The next command opens it again."""

    def server(self) -> dict[str, Any]:
        return {"wall_s": time.time(), **self.about}

    def verify(self, name: str) -> dict[str, Any]:
        return {"records": self.count(name), "log_index": 3, "digest": "aa", "computed": "aa" if self.equal else "bb",
                "equal": self.equal}

    def jobs(self, name: str | None = None) -> list[dict[str, Any]]:
        return [{"collection": name or "docs", "kind": "merge", "state": "running", "stage": "linking", "done": 5,
                 "total": 10, "error": None}]

    def create_key(self, name: str, grants: Sequence[Grant], ttl_s: float = 0.0) -> tuple[Key, str]:
        id = f"{len(self.keys):a>12}".replace("0", "a").replace("1", "b")
        self.keys[id] = Key(id, name, tuple(grants), 1e9, time.time() + ttl_s if ttl_s else 0.0)
        return self.keys[id], f"vdb_{id}_secret"

    def list_keys(self, call: Any = None) -> list[Key]:
        return list(self.keys.values())

    def rotate_key(self, id: str, overlap_s: float = 0.0) -> tuple[Key, str]:
        return self.keys[id], f"vdb_{id}_new{overlap_s:g}"

    def shards(self, name: str | None = None, call: Any = None) -> list[ShardInfo]:
        """Of a server that is alone, unless a test says what its cluster is."""
        if self.shard_list is None:
            self.shard_list = [ShardInfo(one, 0, "n1/0", (ReplicaInfo("n1/0", "n1", "ok", "leader", lag=0, behind=0),))
                               for one in self.list_collections()]
        found = [one for one in self.shard_list if name is None or one.collection == name]
        if name and not found:
            raise CollectionNotFound(name)
        return found

    def shard_map(self, name: str, call: Any = None) -> ShardMap:
        """Equal ranges."""
        groups = self.shards(name)
        edges = [(HASH_SPACE // len(groups)) * at for at in range(len(groups))] + [HASH_SPACE]
        return ShardMap(name, 9, None, tuple(
            ShardRoute(one.group, edges[at], edges[at + 1], tuple(replica.node for replica in one.replicas))
            for at, one in enumerate(groups)), (NodeRoute("n1", "db:7700", "east"),))

    def operate(self, method: str, *args: Any, call: Any = None, **named: Any) -> Any:
        """Of a cluster, once a test says which."""
        if self.operated is None:
            raise Unsupported("this server is alone")
        self.asked.append((method, *args))
        return self.operated[method]

    def verify_shard(self, name: str, deep: bool = False, call: Any = None) -> ShardVerification:
        return self.verified[name] if deep or not self.verified[name].replicas[0].deep else replace(
            self.verified[name], replicas=tuple(replace(one, deep="") for one in self.verified[name].replicas))

    def transfer_leader(self, name: str, to: str | None = None, call: Any = None) -> None:
        self.handed.append((name, to))

    def revoke_key(self, id: str) -> None:
        if id not in self.keys:
            raise KeyNotFound(f"no key {id}")
        self.keys[id] = dataclasses.replace(self.keys[id], revoked=True)


@dataclass
class Ran:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return orjson.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        return orjson.loads(self.err.splitlines()[-1])["error"]


@pytest.fixture
def backend() -> Lasting:
    return Lasting()


@pytest.fixture
def opened() -> list[dict[str, Any]]:
    """The options of every opening."""
    return []


@pytest.fixture
def cli(backend, opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    """``cli("collection", "list")`` in an empty directory with a database at ``./data``."""
    monkeypatch.chdir(tmp_path)
    for name in [one for one in os.environ if one.startswith("VECDB_")]:
        monkeypatch.delenv(name)
    (tmp_path / "data").mkdir()

    def connect(path, **options):
        opened.append({"path": path if "://" in str(path) else Path(path), **options})
        return Database(backend)

    monkeypatch.setattr(vecdb, "connect", connect)

    def run(*argv: object) -> Ran:
        capfd.readouterr()
        code = main([str(one) for one in argv])
        said = capfd.readouterr()
        return Ran(code, said.out, said.err)

    return run


@pytest.fixture
def docs(backend, cli):
    """Fifty records of four dimensions, l2; record i is at (i, 0, 0, 0)."""
    made = Database(backend).create_collection("docs", dim=4, metric="l2")
    vectors = np.zeros((50, 4), np.float32)
    vectors[:, 0] = np.arange(50)
    made.upsert(ids=[*range(49), "last"], vectors=vectors,
                metadata=[{"n": n, "even": n % 2 == 0, "text": f"record {n}"} for n in range(50)])
    return made
