"""Files of sealed segments that rot while they are served from memory: a verification reads them again."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faults import flip_byte, truncate, unreadable
from vecdb.app import open_embedded
from vecdb.client.database import Database
from vecdb.core.calls import Call, Stopped
from vecdb.core.errors import Cancelled, DataCorrupted
from vecdb.segment.files import medium
from vecdb.segment.sealed import SealedView
from vecdb.services import rereading
from vecdb.services.alone import LoneShards
from vecdb.services.local import LocalDatabase

DIM, N = 256, 2_500
"""Vectors of 2.5 MB: three blocks of a checksum, of which the last is not whole."""


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[LocalDatabase]:
    backend = open_embedded(tmp_path / "db", background=False)
    assert isinstance(backend, LocalDatabase)
    yield backend
    backend.close()


def sealed(backend: LocalDatabase, **options: Any) -> Any:
    docs = Database(backend, label="test").create_collection("c", DIM, metric="l2", **options)
    docs.upsert(ids=np.arange(N), vectors=np.random.default_rng(3).standard_normal((N, DIM)),
                metadata=[{"n": i} for i in range(N)])
    docs.optimize()
    return docs


def file_of(backend: LocalDatabase, name: str) -> Path:
    (view, _) = backend._slots["c"].opened.shard.view.segments  # type: ignore[union-attr]
    assert isinstance(view, SealedView)
    return view.segment.directory / name


@pytest.mark.parametrize(("name", "harm", "direct"), [
    ("vectors.vdb", lambda path: flip_byte(path, 20_000), True),
    ("vectors.vdb", lambda path: flip_byte(path, 20_000), False),
    ("vectors.vdb", lambda path: flip_byte(path, -1), True),
    ("vectors.vdb", lambda path: truncate(path, 1_500_000), True),
    ("records.vdb", lambda path: flip_byte(path, 5_000), True), ("records.vdb", Path.unlink, True)],
    ids=["a block", "where the cache cannot be passed", "the directory", "cut short", "records", "missing"])
def test_bytes_that_rot_under_a_served_segment_are_found(backend: LocalDatabase, monkeypatch: pytest.MonkeyPatch,
                                                        name: str, harm: Callable[[Path], None], direct: bool) -> None:
    if not direct:
        monkeypatch.setattr(medium, "_DIRECT", 0)
    docs = sealed(backend, index="flat")
    assert backend.verify("c")["equal"]
    assert "damage" not in docs.describe().details
    harm(file_of(backend, name))
    for _ in range(2):
        with pytest.raises(DataCorrupted, match=name):
            backend.verify("c")
    (told,) = docs.describe().details["damage"]
    assert len(told["messages"]) == 1
    assert name in told["messages"][0]
    assert len(docs.fetch(list(range(N)))) == N, "what was loaded is as good as before"


def test_the_shard_of_a_node_that_is_alone_is_told_to_be_damaged() -> None:
    class Node:
        async def verify(self, name: str, call: Call) -> Any:
            raise DataCorrupted("vectors.vdb is damaged", path="vectors.vdb")

    found = asyncio.run(LoneShards(Node(), "n1").verify("c", Call()))  # type: ignore[arg-type]
    assert not found.agree
    assert [(one.state, one.error) for one in found.replicas] == [("damaged", "vectors.vdb is damaged")]


def test_what_is_read_from_the_damaged_place_is_named_and_left_out(backend: LocalDatabase) -> None:
    docs = sealed(backend, index="flat", vectors_on_disk=True)
    with unreadable(file_of(backend, "vectors.vdb"), 4_096 + (1 << 20)), \
            pytest.raises(DataCorrupted, match="1024 vectors lie there"):
        backend.verify("c")
    (told,) = docs.describe().details["damage"]
    assert (told["lost_records"], len(told["lost_ids"])) == (1_024, 1_000)
    hits = docs.query(np.zeros(DIM), k=N)
    assert hits.partial
    assert len(hits) == N - 1_024


def test_an_index_is_made_anew(backend: LocalDatabase) -> None:
    docs = sealed(backend, index="hnsw", m=4, ef_construction=20)
    path = file_of(backend, "index.vdb")
    flip_byte(path, path.stat().st_size // 2)
    for _ in range(2):
        assert backend.verify("c")["equal"]
    assert "index.vdb is damaged" in docs.describe().details["damage"][0]["messages"][0]
    docs.optimize()
    assert rereading.reread(backend._slots["c"].opened.shard, backend._clock) == []  # type: ignore[union-attr]
    assert docs.describe().details["damage"][0]["messages"][1:] == ["the index was rebuilt from the vectors"]


def test_a_segment_that_a_merge_replaces_meanwhile_is_no_damage(backend: LocalDatabase,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    docs, read = sealed(backend, index="flat"), rereading._read
    merged: list[Path] = []

    def late(segment: Any, *more: Any) -> Any:
        if not merged:
            docs.delete(ids=list(range(N // 2)))
            docs.optimize()
            merged.append(segment.directory)
            assert not segment.directory.exists()
        return read(segment, *more)

    monkeypatch.setattr(rereading, "_read", late)
    assert backend.verify("c")["equal"]
    assert merged
    assert "damage" not in docs.describe().details
    shutil.rmtree(file_of(backend, ""))
    with pytest.raises(DataCorrupted, match="missing"):
        backend.verify("c")


def test_an_ended_call_stops_it(backend: LocalDatabase) -> None:
    sealed(backend, index="flat")
    call = Call()
    shard = backend._slots["c"].opened.shard  # type: ignore[union-attr]
    assert rereading.reread(shard, backend._clock, call) == []
    call.end(Stopped.CANCELLED)
    with pytest.raises(Cancelled):
        rereading.reread(shard, backend._clock, call)
