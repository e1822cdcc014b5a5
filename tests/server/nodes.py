"""A node as a process of its own, and the least a client needs to hurt it."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from bench.server.processes import Child, start_node
from vecdb.v1 import admin_pb2, collections_pb2, queries_pb2, records_pb2, types_pb2

DIM = 32
CALL_S = 60.0
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1),
           ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]


class Node:
    """``vecdb serve`` on loopback; ``settings`` are variables without their prefix."""

    def __init__(self, place: Path, data: Path | None = None, **settings: object) -> None:
        self.place, self.data = place, data or place / "data"
        environment = {f"VECDB_{name.upper()}": str(value) for name, value in settings.items()}
        environment.setdefault("VECDB_SERVER__WARM_UP", "false")
        environment.setdefault("VECDB_LOG__LEVEL", "warning")
        self.child: Child
        self.child, ready = start_node(self.data, place, environment)
        self.target = f"127.0.0.1:{ready['grpc_port']}"
        self.port = int(ready["grpc_port"])
        self.http_port = int(ready.get("http_port") or 0)
        self.channel = grpc.insecure_channel(self.target, OPTIONS)

    @property
    def running(self) -> bool:
        return self.child.process.poll() is None

    def rss(self) -> int:
        return self.child.rss_bytes()

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.child.pid}/fd"))

    def words(self) -> str:
        return self.child.last_words(20_000)

    def ask(self, method: str, message: Any, *, timeout: float = CALL_S) -> bytes:
        reply: bytes = self.channel.unary_unary(f"/vecdb.v1.{method}")(message.SerializeToString(), timeout=timeout)
        return reply

    def create(self, name: str, dim: int = DIM, kind: int = types_pb2.INDEX_KIND_FLAT) -> None:
        schema = types_pb2.Schema(name=name, dim=dim, metric=types_pb2.METRIC_L2,
                                  index=types_pb2.IndexSpec(kind=kind))  # type: ignore[arg-type]
        self.ask("Collections/Create", collections_pb2.CreateCollectionRequest(schema=schema))

    def upsert(self, name: str, ids: np.ndarray, vectors: np.ndarray, metadata: list[bytes] | None = None) -> int:
        reply = records_pb2.UpsertReply.FromString(self.ask("Records/Upsert", upsert(name, ids, vectors, metadata)))
        return int(reply.result.inserted + reply.result.updated)

    def query(self, name: str, vectors: np.ndarray, **options: Any) -> queries_pb2.QueryReply:
        return queries_pb2.QueryReply.FromString(self.ask("Queries/Query", query(name, vectors, **options)))

    def fetch(self, name: str, ids: np.ndarray) -> list[int]:
        """Those of the ids that there are."""
        request = records_pb2.FetchRequest(collection=name, ids=integers(ids), without_metadata=True,
                                           without_vectors=True)
        reply = records_pb2.FetchReply.FromString(self.ask("Records/Fetch", request))
        return [int(one) for one in np.frombuffer(reply.ids.integers, "<i8")]

    def about(self) -> dict[str, Any]:
        reply = admin_pb2.GetServerReply.FromString(self.ask("Admin/GetServer", admin_pb2.GetServerRequest()))
        found: dict[str, Any] = json.loads(reply.details_json)
        return found

    def kill(self) -> None:
        """No goodbye, as when the power goes."""
        self.child.signal(signal.SIGKILL)
        self.child.process.wait(30)
        self.channel.close()

    def terminate(self) -> None:
        self.child.signal(signal.SIGTERM)

    def close(self) -> int:
        self.channel.close()
        return self.child.end(30.0)


@contextmanager
def node(place: Path, data: Path | None = None, **settings: object) -> Iterator[Node]:
    place.mkdir(parents=True, exist_ok=True)
    standing = Node(place, data, **settings)
    try:
        yield standing
    finally:
        standing.close()


def integers(ids: np.ndarray) -> types_pb2.Ids:
    return types_pb2.Ids(integers=np.asarray(ids, "<i8").tobytes())


def matrix(vectors: np.ndarray) -> types_pb2.Matrix:
    rows = np.atleast_2d(np.asarray(vectors, "<f4"))
    return types_pb2.Matrix(rows=rows.shape[0], items=rows.shape[1], dtype=types_pb2.DATA_TYPE_FLOAT32,
                            data=rows.tobytes())


def upsert(name: str, ids: np.ndarray, vectors: np.ndarray,
           metadata: list[bytes] | None = None) -> records_pb2.UpsertRequest:
    return records_pb2.UpsertRequest(collection=name, ids=integers(ids), vectors=matrix(vectors),
                                     metadata=metadata or [])


def query(name: str, vectors: np.ndarray, **options: Any) -> queries_pb2.QueryRequest:
    return queries_pb2.QueryRequest(collection=name, vectors=matrix(vectors), **options)


def vectors(count: int, seed: int, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def until(true: Any, seconds: float = 60.0) -> bool:
    """Wait for something that happens soon; False when it does not."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.02)
    return bool(true())
