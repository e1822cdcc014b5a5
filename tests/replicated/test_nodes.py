"""Three ``vecdb serve`` processes: any node answers, whoever is killed nothing acknowledged is lost.

One cluster for all tests; each leaves its nodes running and well.
"""

import itertools
import resource
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest

import vecdb
from tests.replicated_nodes import NAMES, Processes, agreed, wait_for
from vecdb.core.errors import CollectionExists, CollectionNotFound, VecdbError

DIM = 8
LOG_BYTES = 1 << 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with Processes(tmp_path_factory.mktemp("cluster"), log_bytes=LOG_BYTES) as made:
        yield made


@pytest.fixture(autouse=True)
def words(cluster: Processes, request: pytest.FixtureRequest) -> Iterator[None]:
    """What the nodes have logged, where a test fails."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
        for node in cluster.nodes.values():
            print(f"--- {node.name} (running: {node.running}):\n{node.words()}")


@pytest.fixture
def name(cluster: Processes, request: pytest.FixtureRequest) -> Iterator[str]:
    """Of a collection of the test's own."""
    made = request.node.name[:60].replace("[", "-").replace("]", "")
    with vecdb.connect(cluster.urls) as db:
        db.create_collection(made, dim=DIM, metric="l2")
    yield made
    with vecdb.connect(cluster.urls) as db:
        db.drop_collection(made)


def row(number: int) -> np.ndarray:
    return np.full((1, DIM), number, np.float32)


class Writer:
    """Writes 1, 2, 3… until it is told to end.

    ``acked``: those that were acknowledged; ``gap_s``: the longest wait of one since it was set to 0.
    """

    def __init__(self, urls: str, name: str) -> None:
        self._name, self._urls = name, urls
        self._over = threading.Event()
        self.acked: list[int] = []
        self.failed: list[VecdbError] = []
        self.gap_s = 0.0
        self.latencies: list[float] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with vecdb.connect(self._urls, timeout=30.0) as db:
            docs = db.collection(self._name)
            for number in itertools.count(1):
                if self._over.is_set():
                    return
                began = time.monotonic()
                try:
                    docs.upsert(ids=[number], vectors=row(number))
                except VecdbError as error:
                    self.failed.append(error)
                else:
                    self.acked.append(number)
                self.latencies.append(time.monotonic() - began)
                self.gap_s = max(self.gap_s, self.latencies[-1])

    def __enter__(self) -> "Writer":
        self._thread.start()
        self.more(20)
        return self

    def more(self, count: int) -> None:
        """Return once so many more were acknowledged."""
        upto = len(self.acked) + count
        wait_for(lambda: len(self.acked) >= upto or self.failed, f"{count} more writes", 60)
        assert not self.failed

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join(60)


def present(url: str, name: str, **read: Any) -> set[int]:
    with vecdb.connect(url) as db:
        return {int(hit) for page in [db.collection(name).scan(**read)] for hit in [one.id for one in page]}


def check_all(cluster: Processes, name: str, acked: list[int]) -> None:
    """Everything acknowledged is on every node, and all replicas hold the same."""
    cluster.settled()
    for node in cluster.nodes.values():
        missing = set(acked) - present(node.url, name, consistency="linearizable")
        assert not missing, f"{node.name} lacks {sorted(missing)[:5]}"
    with vecdb.connect(cluster.nodes["n1"].url) as db:
        found = agreed(db, name)
    assert len(found.replicas) == len(NAMES)


# --- any node -------------------------------------------------------------------------------------


def test_any_node_makes_writes_queries_and_drops(cluster: Processes) -> None:
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((600, DIM))
    for at, node in enumerate(cluster.nodes.values()):
        others = [one for one in cluster.nodes.values() if one is not node]
        with (vecdb.connect(node.url) as db, vecdb.connect(others[0].url) as other,
              vecdb.connect(others[1].url) as third):
            docs = db.create_collection(f"any-{at}", dim=DIM, metric="cosine")
            assert f"any-{at}" in third.list_collections()
            with pytest.raises(CollectionExists):
                other.create_collection(f"any-{at}", dim=DIM, metric="cosine")
            result = other.collection(f"any-{at}").upsert(ids=range(600), vectors=vectors,
                                                          metadata=[{"n": n} for n in range(600)])
            assert result.inserted == 600
            assert docs.count(consistency="linearizable") == 600
            asked = {"k": 5, "filter": "n < 300", "include": ["metadata"], "consistency": "linearizable"}
            answers = [one.collection(f"any-{at}").query(vectors[:40], **asked) for one in (db, other, third)]
            for hits in zip(*answers, strict=True):
                assert len({tuple(one.ids) for one in hits}) == 1
                assert hits[0].ids
            assert third.collection(f"any-{at}").delete(filter="n >= 500").deleted == 100
            assert docs.update_metadata(ids=[1], metadata={"seen": True}).updated == 1
            fetched = other.collection(f"any-{at}").fetch([1, 555], consistency="linearizable")
            assert [one.metadata for one in fetched] == [{"n": 1, "seen": True}]
            told = third.collection(f"any-{at}").describe(consistency="eventual").details
            assert told["replica"].partition("/")[0] in cluster.nodes  # mostly its own; another's where that is slow
            stages: list[str] = []
            third.collection(f"any-{at}").optimize(progress=lambda *step, to=stages: to.append(step[0]))
            other.drop_collection(f"any-{at}")
            with pytest.raises(CollectionNotFound):
                other.collection(f"any-{at}").count()


def test_pages_of_one_scan_may_come_from_different_nodes(cluster: Processes, name: str) -> None:
    rng = np.random.default_rng(4)
    with vecdb.connect(cluster.urls) as db:
        docs = db.collection(name)
        docs.upsert(ids=range(900), vectors=rng.standard_normal((900, DIM)))
        docs.upsert(ids=range(0, 900, 7), vectors=rng.standard_normal((129, DIM)))
        docs.delete(ids=list(range(3, 900, 11)))
        docs.optimize()
    cluster.settled()
    orders = []
    for node in cluster.nodes.values():
        with vecdb.connect(node.url) as db:
            orders.append([one.id for one in db.collection(name).scan()])
    assert orders[0] == orders[1] == orders[2]
    rest = f"/v1/collections/{name}/records:scan"
    nodes, seen, after = itertools.cycle(cluster.nodes.values()), [], None
    while True:
        node = next(nodes)
        page = httpx.post(f"http://127.0.0.1:{node.http_port}{rest}", timeout=30,
                          json={"limit": 50, **({} if after is None else {"after": after})}).json()
        seen += [one["id"] for one in page["records"]]
        after = page.get("cursor")
        if after is None:
            break
    assert seen == orders[0]


def test_rest_works_on_any_node(cluster: Processes, name: str) -> None:
    for at, node in enumerate(cluster.nodes.values()):
        with httpx.Client(base_url=f"http://127.0.0.1:{node.http_port}", timeout=30) as rest:
            wrote = rest.post(f"/v1/collections/{name}/records", json={"ids": [at], "vectors": [[at] * DIM]}).json()
            assert wrote["inserted"] == 1
            assert wrote["shard"] > 0
            found = rest.post(f"/v1/collections/{name}:query", json={
                "vector": [at] * DIM, "k": 1, "consistency": "session",
                "session": [{"shard": wrote["shard"], "log_index": wrote["log_index"]}]}).json()
            assert found["results"][0]["matches"][0]["id"] == at
            assert rest.get("/readyz").status_code == 200
            page = rest.get("/metrics").text
            assert 'vecdb_raft_replicas{state="ok"} ' in page
            assert "vecdb_raft_apply_lag" in page


def test_a_session_finds_what_it_wrote_on_every_node(cluster: Processes, name: str) -> None:
    with vecdb.connect(cluster.urls) as db:
        docs = db.collection(name)
        for number in range(60):
            docs.upsert(ids=[number], vectors=row(number))
            assert [one.id for one in docs.fetch([number])] == [number]
            assert docs.query(row(number)[0], k=1)[0].id == number
            assert docs.count() == number + 1


def test_linearizable_reads_are_never_stale(cluster: Processes, name: str) -> None:
    """Readers on each node, beside a writer: what was acknowledged before a read began is in it."""
    with Writer(cluster.urls, name) as writer:
        stale: list[tuple[str, int, int]] = []
        counts = dict.fromkeys(NAMES, 0)

        def read(node: Any) -> None:
            with vecdb.connect(node.url) as db:
                docs = db.collection(name)
                until = time.monotonic() + 2.0
                while time.monotonic() < until or not counts[node.name]:
                    before = writer.acked[-1]
                    if not docs.fetch([before], consistency="linearizable"):
                        stale.append((node.name, before, docs.count()))
                    counts[node.name] += 1

        readers = [threading.Thread(target=read, args=(node,)) for node in cluster.nodes.values()]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(60)
        assert not stale
        assert min(counts.values()) > 0


# --- ends -----------------------------------------------------------------------------------------


@contextmanager
def away(cluster: Processes, name: str) -> Iterator[None]:
    """A node that is killed, and started again in the end."""
    cluster.nodes[name].kill()
    try:
        yield
    finally:
        cluster.start([name])


def test_a_killed_leader_costs_a_pause_and_no_acknowledged_write(cluster: Processes, name: str) -> None:
    gaps: list[float] = []
    with Writer(cluster.urls, name) as writer:
        for _ in range(3):
            cluster.settled()
            writer.gap_s = 0.0
            with away(cluster, cluster.leader(name)):
                writer.more(50)
                gaps.append(writer.gap_s)
    print(f"longest waits of a write around kill -9 of the leader: {[round(one, 2) for one in gaps]} s; "
          f"p50 of {len(writer.latencies)} writes: {statistics.median(writer.latencies) * 1e3:.1f} ms")
    assert not writer.failed
    check_all(cluster, name, writer.acked)


def test_a_leader_that_stops_hands_over_and_no_call_fails(cluster: Processes, name: str) -> None:
    with Writer(cluster.urls, name) as writer:
        cluster.settled()
        writer.gap_s = 0.0
        leader = cluster.leader(name)
        assert cluster.nodes[leader].stop() == 0
        writer.more(50)
        print(f"longest wait of a write around a hand-over: {writer.gap_s:.2f} s")
        assert cluster.leader(name) != leader
        cluster.start([leader])
    assert not writer.failed
    check_all(cluster, name, writer.acked)


def test_a_frozen_leader_is_left_and_comes_back_as_a_follower(cluster: Processes, name: str) -> None:
    leader = cluster.leader(name)
    others = [node for node in cluster.nodes.values() if node.name != leader]
    with Writer(",".join([others[0].url, others[1].url.removeprefix("grpc://")]), name) as writer:
        cluster.nodes[leader].signal(signal.SIGSTOP)
        try:
            writer.more(50)
        finally:
            cluster.nodes[leader].signal(signal.SIGCONT)
        for _ in range(20):
            assert set(writer.acked[:1]) <= present(cluster.nodes[leader].url, name, consistency="linearizable")
    assert not writer.failed
    check_all(cluster, name, writer.acked)


def test_a_follower_that_was_away_catches_up_by_log(cluster: Processes, name: str) -> None:
    leader = cluster.leader(name)
    follower = next(one for one in NAMES if one != leader)
    with Writer(cluster.urls, name) as writer, away(cluster, follower):
        writer.more(100)
    check_all(cluster, name, writer.acked)


def test_a_follower_that_was_away_for_long_catches_up_by_snapshot(cluster: Processes, name: str) -> None:
    leader = cluster.leader(name)
    follower = next(one for one in NAMES if one != leader)
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((20_000, DIM)).astype(np.float32)
    with away(cluster, follower), vecdb.connect(cluster.urls) as db:
        docs = db.collection(name)
        for low in (0, 20_000):
            docs.upsert(ids=range(low, low + 20_000), vectors=vectors, batch_size=5_000)
        shard = db.admin.shards(name)[0]
        wait_for(lambda: any(one.role == "leader" and one.first > 2 for one in db.admin.shards(name)[0].replicas),
                 "the log cut")
    cluster.settled()
    assert "raft_snapshot_installed" in cluster.nodes[follower].events()
    with vecdb.connect(cluster.nodes[follower].url) as db:
        assert db.collection(name).count() == 40_000
        found = agreed(db, name, deep=False)
        assert found.group == shard.group


def test_a_node_whose_disk_was_lost_comes_back_with_everything(cluster: Processes, name: str) -> None:
    follower = next(one for one in NAMES if one != cluster.leader(name))
    with Writer(cluster.urls, name) as writer:
        cluster.nodes[follower].kill()
        shutil.rmtree(cluster.nodes[follower].data)
        cluster.start([follower])
        writer.more(50)
    check_all(cluster, name, writer.acked)


def test_all_nodes_killed_at_once_and_started_again(cluster: Processes, name: str) -> None:
    with Writer(cluster.urls, name) as writer:
        for node in cluster.nodes.values():
            node.kill()
        cluster.start(NAMES)
        writer.more(20)
    assert not writer.failed
    check_all(cluster, name, writer.acked)


def test_one_node_of_three_reads_what_it_has_and_promises_nothing(cluster: Processes, name: str) -> None:
    with vecdb.connect(cluster.urls) as db:
        db.collection(name).upsert(ids=[1], vectors=row(1))
    cluster.settled()
    alone, *others = NAMES
    for other in others:
        cluster.nodes[other].kill()
    try:
        with vecdb.connect(cluster.nodes[alone].url) as db:
            docs = db.collection(name)
            assert docs.count(consistency="eventual") == 1
            with pytest.raises(VecdbError):
                docs.count(consistency="linearizable", timeout=1)
            with pytest.raises(VecdbError):
                docs.upsert(ids=[2], vectors=row(2), timeout=1)
        wait_for(lambda: not cluster.nodes[alone].readiness()["ready"], "unreadiness")
    finally:
        cluster.start(others)
    cluster.settled()
    check_all(cluster, name, [1])


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process are Linux's: run it there")
def test_a_node_whose_disk_is_full_is_of_use_and_starts_anew_when_there_is_room(cluster: Processes, name: str) -> None:
    """Full: no file may grow.  Its clients are served by the others meanwhile."""
    node = cluster.nodes[next(one for one in NAMES if one != cluster.leader(name))]
    pid, (_, most) = node.pid, resource.prlimit(node.pid, resource.RLIMIT_FSIZE)
    with Writer(cluster.urls, name) as writer:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1 << 16, most))
        rng = np.random.default_rng(6)
        with vecdb.connect(cluster.urls) as db:
            docs = db.collection(name)
            wait_for(lambda: docs.upsert(ids=range(10**6, 10**6 + 500), vectors=rng.standard_normal((500, DIM)))
                     and not node.readiness()["ready"], "a full disk")
        writer.more(20)
        with vecdb.connect(node.url, timeout=20) as db:
            assert db.collection(name).count() >= 500
            assert db.collection(name).upsert(ids=[10**7], vectors=row(1)).inserted == 1
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))
        wait_for(lambda: "starting_anew" in node.events(), "a start anew")
        cluster.settled()
    assert node.pid == pid
    assert not writer.failed
    check_all(cluster, name, writer.acked)
