"""Replicas without a network: databases in the hosting form, commands for them, and snapshots carried by hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from vecdb.app import open_store
from vecdb.core.calls import WriteToken
from vecdb.core.filters import to_node
from vecdb.core.query import ScanRequest
from vecdb.core.records import Command, DeleteIds, DeleteWhere, UpdateMetadata, UpsertBatch
from vecdb.core.schema import CollectionSchema, IndexSpec
from vecdb.ports.replicator import Incoming, Snapshot
from vecdb.ports.stores import OpenStore
from vecdb.runtime.clock import SystemClock
from vecdb.runtime.pool import KernelPool
from vecdb.services.local import LocalDatabase
from vecdb.services.replica import ShardReplica
from vecdb.services.settings import EngineSettings
from vecdb.shard import codec
from vecdb.shard.marks import Mark

DIM = 8
SCHEMA = CollectionSchema("c", DIM, "l2", index=IndexSpec(kind="hnsw", m=8, ef_construction=40))
FOLDER = "g00000001"


def open_replicas(path: Path, *, opener: OpenStore = open_store, **settings: Any) -> LocalDatabase:
    path.mkdir(exist_ok=True)
    pool = KernelPool(2)
    values = {"seal_records": 150, "background": False, **settings}
    return LocalDatabase(path, opener, pool, SystemClock(), EngineSettings(replicated=True, **values),
                         on_job_error=lambda job, error: None, on_close=pool.close)


@contextmanager
def replica_at(path: Path, schema: CollectionSchema = SCHEMA, **settings: Any) -> Iterator[ShardReplica]:
    """A hosted replica; everything is closed in order at the end."""
    database = open_replicas(path, **settings)
    try:
        database.host(schema, FOLDER)
        yield database.replica(schema.name)
    finally:
        database.close()


def upsert(rng: Random, count: int, among: int) -> UpsertBatch:
    ids = tuple(dict.fromkeys(rng.choice([rng.randrange(among), f"s{rng.randrange(among)}"]) for _ in range(count)))
    vectors = np.array([[rng.uniform(-1, 1) for _ in range(DIM)] for _ in ids], np.float32)
    bodies = tuple(b'{"n":%d,"tag":"%s"}' % (rng.randrange(20), rng.choice([b"a", b"b", b"c"])) for _ in ids)
    return UpsertBatch(ids, vectors, bodies)


def random_command(rng: Random, among: int = 150) -> tuple[Command | Mark, WriteToken | None]:
    """Any command; one in ten is wrong, one in five comes with a token that has a chance of being an old one."""
    kind = rng.random()
    ids = tuple(dict.fromkeys(rng.randrange(among) for _ in range(rng.randrange(1, 12))))
    command: Command | Mark
    if kind < 0.5:
        command = upsert(rng, rng.randrange(1, 40), among)
    elif kind < 0.62:
        command = DeleteIds(ids)
    elif kind < 0.72:
        command = DeleteWhere(to_node(rng.choice([f"n == {rng.randrange(20)}", f"n > {rng.randrange(17, 25)}",
                                                  "tag == 'a' and n < 3", "not exists n", "x.y > 3 or n == 1"])))
    elif kind < 0.85:
        body = b'{"n":%d,"x":{"y":%d}}' % (rng.randrange(20), rng.randrange(6))
        command = UpdateMetadata(ids, (body,) * len(ids), rng.random() < 0.5)
    elif kind < 0.92:
        command = Mark()
    else:
        command = rng.choice([UpsertBatch((1,), np.zeros((1, DIM + 1), np.float32), (b"{}",)),
                              UpsertBatch((1, 2), np.zeros((2, DIM), np.float32), (b"[]", b"nonsense")),
                              UpdateMetadata(ids, (b"nonsense",) * len(ids))])
    token = WriteToken(b"key%d" % rng.randrange(60), rng.randrange(2)) if rng.random() < 0.2 else None
    return command, token


def random_log(seed: int, length: int, among: int = 150) -> list[bytes]:
    """Commands of a log, the first at index 1; some are no commands at all."""
    rng = Random(seed)
    return [rng.randbytes(rng.randrange(40)) if rng.random() < 0.02 else codec.encode(*random_command(rng, among))
            for _ in range(length)]


def play(replica: ShardReplica, log: list[bytes], upto: int | None = None) -> list[object]:
    """Apply what comes behind the replica's position; outcomes, errors by class and text."""
    first = replica.position().log_index
    return [told(replica.apply(index + 1, 1 + index // 50, command))
            for index, command in enumerate(log[:upto]) if index >= first]


def told(outcome: object) -> object:
    return (type(outcome).__name__, str(outcome)) if isinstance(outcome, Exception) else outcome


def records_of(database: LocalDatabase, name: str = "c") -> dict[Any, tuple[Any, bytes]]:
    """Every record by id: metadata and the vector's bytes."""
    out: dict[Any, tuple[Any, bytes]] = {}
    after: int | None = 0
    while after is not None:
        page = database.scan(name, ScanRequest(limit=500, after=after, include_vectors=True))
        assert page.vectors is not None
        assert page.metadata is not None
        for one, metadata, vector in zip(page.ids, page.metadata, page.vectors, strict=True):
            out[one] = (metadata, vector.tobytes())
        after = page.cursor
    return out


def carry(snapshot: Snapshot, incoming: Incoming, chunk: int = 64 << 10) -> int:
    """What a network would do; returns how many bytes went over."""
    carried = 0
    for at, file in enumerate(snapshot.files):
        while (offset := incoming.have(at)) < file.bytes:
            data = snapshot.read(at, offset, min(chunk, file.bytes - offset))
            incoming.write(at, offset, data)
            carried += len(data)
    return carried
