"""Three nodes that are started anew one after the other: upgraded, under writes and queries, or from their disks."""

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.grown_nodes import COORDINATORS, Grown
from tests.replicated_nodes import agreed, free_ports, wait_for
from tests.users import DIM, Load, vectors
from vecdb.cluster.joining import Release
from vecdb.core.cluster import JobState
from vecdb.core.errors import Unsupported, VecdbError
from vecdb.services import replicas
from vecdb.services.replica import ShardReplica

OLD, NEW, FAR = Release("1.1.4", 1), Release("1.2.0", 2), Release("1.4.0", 2)
"""The first reads control commands of version 1 alone: what is not kept from it, it would apply as nothing."""


@pytest.fixture
def nodes(tmp_path: Path) -> Any:
    with Grown(tmp_path, role="both") as grown:
        for name, port in zip(COORDINATORS, free_ports(len(COORDINATORS)), strict=True):
            made = grown.settings[name]
            grown.settings[name] = made.model_copy(update={"server": made.server.model_copy(update={
                "grpc_port": port})})
        grown.releases = dict.fromkeys(COORDINATORS, OLD)
        grown.start(COORDINATORS)
        grown.ready()
        yield grown


def restarted(nodes: Grown, name: str, release: Release) -> None:
    nodes.stop([name])
    nodes.releases[name] = release
    nodes.start([name])


def reasons(nodes: Grown, name: str, words: str) -> None:
    wait_for(lambda: any(words in why for why in nodes.reasons(name)), f"{words!r} of {name}")


def ended(cluster: Any, id: int) -> JobState:
    return JobState(wait_for(lambda: (job := cluster.job(id)).state in ("done", "failed", "cancelled") and job,
                             "the end of a job").state)


def test_an_upgrade_of_one_node_after_the_other(nodes: Grown) -> None:
    with nodes.connect(*COORDINATORS) as db:
        db.create_collection("docs", dim=DIM, metric="cosine")
        cluster = db.admin.cluster
        with Load(db, "docs") as load:
            for at, name in enumerate(COORDINATORS):
                left = list(COORDINATORS[at:])
                for change in (lambda: cluster.begin("scrub", "docs", {}), lambda: cluster.create_join_token(60.0, []),
                               lambda: cluster.set("scrub_every_s", 900.0),
                               lambda: db.create_collection("more", dim=DIM, metric="cosine", shards=2)):
                    with pytest.raises(Unsupported, match="upgrade all nodes first") as refused:
                        change()
                    told = refused.value.fields["nodes"]  # a leader that is new has not heard of all of them
                    assert told
                    assert set(told) <= set(left)
                restarted(nodes, name, NEW)
                nodes.ready(*COORDINATORS)
            wait_for(lambda: all(nodes.state(name).commands == NEW.commands for name in COORDINATORS), "word of all")
            db.create_collection("more", dim=DIM, metric="cosine", shards=2)
            assert ended(cluster, cluster.begin("scrub", "docs", {})) is JobState.DONE
            load.goes_on()
        load.check()
        agreed(db, "docs", deep=False)
        states = [nodes.state(name) for name in COORDINATORS]
        assert len({one.digest for one in states if one.log_index == max(each.log_index for each in states)}) == 1

    restarted(nodes, "c2", OLD)
    reasons(nodes, "c2", "have agreed on")
    restarted(nodes, "c2", FAR)
    reasons(nodes, "c2", "one minor version apart")
    restarted(nodes, "c2", NEW)
    nodes.ready(*COORDINATORS)


def test_a_node_that_starts_answers_nothing_from_before(nodes: Grown, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written while it was away is not there until its log has been replayed and more has come."""
    monkeypatch.setattr(replicas, "UNLED_S", 120.0)
    ids = list(range(40))
    with nodes.connect(*COORDINATORS) as db:
        docs = db.create_collection("docs", dim=DIM, metric="cosine")
        docs.upsert(ids=ids[:10], vectors=vectors(ids[:10]))
        nodes.stop(["c3"])
        docs.upsert(ids=ids[10:], vectors=vectors(ids[10:]))
    nodes.stop(["c1", "c2"])
    nodes.start(["c3"])
    seen: list[int | str] = []

    def look(at: str) -> int:
        with nodes.connect(at) as db:
            try:
                found = db.collection("docs").count(consistency="eventual", timeout=1.0)
            except VecdbError as error:
                seen.append(type(error).__name__)
                return -1
        seen.append(found)
        return int(found)

    assert look("c3") == -1, "it cannot know how much of its log is committed"
    assert nodes.reasons("c3")
    nodes.start(["c1"])
    wait_for(lambda: look("c3") == len(ids), "all that was acknowledged")
    assert {one for one in seen if isinstance(one, int)} == {len(ids)}
    nodes.ready("c1", "c3")
    nodes.start(["c2"])
    nodes.ready()
    with nodes.connect("c2") as db:
        assert db.collection("docs").count(consistency="eventual") == len(ids), "ready is who has all of it"


def test_ready_is_who_has_replayed(nodes: Grown, monkeypatch: pytest.MonkeyPatch) -> None:
    with nodes.connect(*COORDINATORS) as db:
        docs = db.create_collection("docs", dim=DIM, metric="cosine")
        nodes.stop(["c2"])
        docs.upsert(ids=[1], vectors=vectors([1]))
        wait_for(lambda: {one.lag for one in db.admin.shards("docs")[0].replicas if one.node != "c2"} == {0},
                 "the other follower, which is in this process and is held up as well")
    held = threading.Event()
    apply = ShardReplica.apply

    def slowly(self: ShardReplica, log_index: int, term: int, command: bytes) -> object:
        held.wait(60)
        return apply(self, log_index, term, command)

    monkeypatch.setattr(ShardReplica, "apply", slowly)
    try:
        nodes.start(["c2"])
        reasons(nodes, "c2", "have not caught up yet: docs")
        with nodes.connect("c1") as db:
            wait_for(lambda: {one.node: one.state for one in db.admin.shards("docs")[0].replicas} == {
                "c1": "ok", "c2": "catching up", "c3": "ok"}, "that only c2 catches up")
    finally:
        held.set()
    nodes.ready("c2")


def test_ready_is_not_who_is_filled_again(nodes: Grown, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stops the next node once this one is ready must find a majority that has everything."""
    with nodes.connect(*COORDINATORS) as db:
        docs = db.create_collection("docs", dim=DIM, metric="cosine")
        docs.upsert(ids=[1, 2], vectors=vectors([1, 2]))
        nodes.stop(["c2"])
        shutil.rmtree(nodes.settings["c2"].data_dir)
        held = threading.Event()
        apply = ShardReplica.apply

        def slowly(self: ShardReplica, log_index: int, term: int, command: bytes) -> object:
            held.wait(60)
            return apply(self, log_index, term, command)

        def docs_on_c2() -> Any:
            (shard,) = db.admin.shards("docs")
            return shard, next((one for one in shard.replicas if one.node == "c2" and one.role), None)

        monkeypatch.setattr(ShardReplica, "apply", slowly)
        try:
            nodes.start(["c2"])
            reasons(nodes, "c2", "have not caught up yet: docs")
            wait_for(lambda: (found := docs_on_c2()[1]) is not None and found.state == "catching up", "word of it")
            assert not docs_on_c2()[0].healthy
            assert nodes.reasons("c2")
        finally:
            held.set()
        nodes.ready("c2")
        found = nodes.member("c2").hosting.statuses()["docs"].status
        assert found.role in ("follower", "leader"), "who is ready has its vote"
