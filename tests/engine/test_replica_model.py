"""Replicas are the same, however their segments are cut and whatever crashes: outcomes, digests, answers."""

import os
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests.faults import kill_during
from tests.replicas import DIM, FOLDER, SCHEMA, open_replicas, play, random_log, records_of
from vecdb.core.filters import to_node
from vecdb.core.query import QueryRequest
from vecdb.core.schema import CollectionSchema, IndexSpec
from vecdb.services.local import LocalDatabase
from vecdb.shard.marks import MarkResult
from vecdb.testing.disk import MemoryStore

FILTERS = ("n == 3", "n > 10 and tag == 'b'", "x.y >= 2", "not exists x", "tag in ['a', 'c'] or n < 2")


def _answers(database: LocalDatabase, name: str = "c") -> list[object]:
    rng = np.random.default_rng(3)
    out: list[object] = [database.count(name, to_node(text)) for text in FILTERS]
    for text in (None, *FILTERS):
        found = database.query(name, QueryRequest(rng.standard_normal((3, DIM)).astype(np.float32), k=7, exact=True,
                                                  filter=None if text is None else to_node(text)))
        out.append([list(one.ids) for one in found.matches])
    return out


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_replicas_cut_differently_are_the_same(tmp_path: Path, seed: int) -> None:
    print("seed", seed)
    log = random_log(seed, 260)
    rng = Random(seed)
    fields = (None, ["n"], [])[seed % 3]
    schema = CollectionSchema("c", DIM, "l2", index=IndexSpec(kind="hnsw", m=8, ef_construction=40),
                              indexed_fields=None if fields is None else tuple(fields))
    forms = [{"seal_records": 60, "max_segment_records": 100}, {"seal_records": 25, "max_segment_records": 700},
             {"seal_records": 100_000}]
    databases = [open_replicas(tmp_path / str(at), **form) for at, form in enumerate(forms)]
    try:
        outcomes = []
        for database in databases:
            database.host(schema, FOLDER)
            replica, here = database.replica("c"), []
            while len(here) < len(log):
                here += play(replica, log, len(here) + rng.randrange(10, 60))
                if database is not databases[2]:
                    database.optimize("c")  # seals and merges what there is, at other places for each
                assert replica.verify()["equal"]
            outcomes.append(here)
        assert outcomes[0] == outcomes[1] == outcomes[2]
        assert any(isinstance(one, tuple) for one in outcomes[0]), "some are refused"
        assert any(isinstance(one, MarkResult) for one in outcomes[0])
        cuts = [[view.rid_range for view in database.replica("c").service.view.segments] for database in databases]
        assert len({str(one) for one in cuts}) == 3, "they are cut differently"
        assert len({database.replica("c").digest() for database in databases}) == 1
        assert len({str(database.replica("c").marks()) for database in databases}) == 1
        first = records_of(databases[0])
        assert first == records_of(databases[1]) == records_of(databases[2])
        assert _answers(databases[0]) == _answers(databases[1]) == _answers(databases[2])
    finally:
        for database in databases:
            database.close()


class Disks:
    """Stores in memory, each where its folder is; all lose together what was not synced."""

    def __init__(self) -> None:
        self.stores: dict[str, MemoryStore] = {}

    def open(self, path: Path, *, read_only: bool = False, wal: bool = True) -> MemoryStore:
        path.mkdir(parents=True, exist_ok=True)
        (path / "here").touch()
        return self.stores.setdefault(str(path), MemoryStore())

    def crash(self, rng: Random) -> int:
        return sum(store.crash(rng) for path, store in self.stores.items() if path.endswith("rows"))


@pytest.mark.parametrize("seed", range(6))
def test_a_crash_loses_the_end_and_the_log_brings_it_back(tmp_path: Path, seed: int) -> None:
    print("seed", seed)
    log = random_log(100 + seed, 220)
    rng, disks = Random(seed), Disks()
    with_all = open_replicas(tmp_path / "whole")
    with_all.host(SCHEMA, FOLDER)
    want = play(with_all.replica("c"), log)
    database = open_replicas(tmp_path / "crashing", opener=disks.open, seal_records=40)
    database.host(SCHEMA, FOLDER)
    got: list[object] = []
    crashes = lost = 0
    durable = 0
    while len(got) < len(log):
        replica = database.replica("c")
        first = replica.position().log_index
        assert durable <= first <= len(got), "a crash loses nothing of a checkpoint, and invents nothing"
        del got[first:]
        got += play(replica, log, first + rng.randrange(1, 50))
        if rng.random() < 0.4:
            durable = replica.checkpoint().log_index
        if rng.random() < 0.4:
            database.optimize("c")
        if len(got) < len(log) and rng.random() < 0.6:
            lost += disks.crash(rng)
            crashes += 1
            database.close()  # nothing is written any more: memory is as the crash left it
            database = open_replicas(tmp_path / "crashing", opener=disks.open, seal_records=40)
    assert crashes > 1
    assert lost > 0
    assert got == want, "tokens, marks and refusals are as they would have been"
    assert database.replica("c").digest() == with_all.replica("c").digest()
    assert database.replica("c").marks() == with_all.replica("c").marks()
    assert records_of(database) == records_of(with_all)
    assert database.replica("c").verify()["equal"]
    database.close()
    with_all.close()


WRITER = """
import sys
from pathlib import Path
from random import Random
from tests.replicas import FOLDER, SCHEMA, open_replicas, random_log
path, seed = Path(sys.argv[1]), int(sys.argv[2])
log, rng = random_log(7, 900, 600), Random(seed)
database = open_replicas(path, seal_records=120, background=True)
database.host(SCHEMA, FOLDER)
replica = database.replica("c")
print("began", replica.position().log_index, flush=True)
for index in range(replica.position().log_index, len(log)):
    replica.apply(index + 1, 1 + index // 50, log[index])
    if rng.random() < 0.05:
        print("durable", replica.checkpoint().log_index, flush=True)
    if rng.random() < 0.01:
        database.optimize("c")
print("end", flush=True)
"""


def test_kill_while_background_jobs_run(tmp_path: Path) -> None:
    log = random_log(7, 900, 600)
    with_all = open_replicas(tmp_path / "whole")
    with_all.host(SCHEMA, FOLDER)
    want = play(with_all.replica("c"), log)
    durable = 0
    for kill in range(4):
        lines = kill_during(WRITER, tmp_path / "killed", kill, until=lambda seen, most=4 + 3 * kill: len(seen) > most)
        began = int(lines[0].split()[1])
        assert began >= durable, "a checkpoint is lost"
        durable = max(durable, *(int(line.split()[1]) for line in lines if line.startswith("durable")))
    database = open_replicas(tmp_path / "killed")
    try:
        replica = database.replica("c")
        first = replica.position().log_index
        assert durable <= first <= len(log)
        whole = replica.home.folder
        named = {f"{view.segment.segment_id:08d}" for view in replica.service.view.segments}
        assert {path.name for path in (replica.home.state() / "segments").glob("*")} <= named, "no orphans are left"
        assert sorted(os.listdir(whole)) == ["00000001", "STATE"]
        assert replica.verify()["equal"]
        assert play(replica, log) == want[first:]
        assert replica.digest() == with_all.replica("c").digest()
        assert records_of(database) == records_of(with_all)
    finally:
        database.close()
        with_all.close()
