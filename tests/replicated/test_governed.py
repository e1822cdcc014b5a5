"""A cluster that is steered: shards move, split and merge, nodes are drained and removed, under writes and queries."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.faults import flip_byte
from tests.grown_nodes import COORDINATORS, Grown
from tests.replicated_nodes import agreed, wait_for
from tests.users import DIM, Load, vectors
from vecdb.cli import main
from vecdb.cluster.control import replication
from vecdb.core.cluster import NodeState, Role
from vecdb.core.errors import InvalidArgument, Unavailable, VecdbError

SHARD_NODES = ("s1", "s2", "s3", "s4")
JOB_S = 180.0


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with Grown(tmp_path_factory.mktemp("governed")) as nodes:
        nodes.found()
        token = nodes.token(roles=[Role.SHARD])
        for at, name in enumerate(SHARD_NODES):
            nodes.add(name, nodes.joining(name, token, zone="ab"[at % 2]))
        nodes.takes_part(*SHARD_NODES)
        for name in COORDINATORS:  # what was replaced stays for half a minute otherwise
            for kind in ("split", "merge"):
                nodes.member(name).governing.governor.operations[kind].grace_s = 0.5
        yield nodes


@pytest.fixture(scope="module")
def db(grown: Grown) -> Any:
    with grown.connect("c1", "c2", "c3") as database:
        yield database


def run(database: Any, kind: str, target: str = "", **args: Any) -> Any:
    """A job until it has ended."""
    cluster = database.admin.cluster
    id = cluster.begin(kind, target, args)

    def ended() -> Any:
        try:
            job = cluster.job(id)
        except Unavailable:
            return None
        return job if job.state in ("done", "failed", "cancelled") else None

    return wait_for(ended, f"the end of {kind} {target}", JOB_S)


def places(database: Any, name: str) -> dict[int, list[str]]:
    return {one.group: sorted(replica.node for replica in one.replicas if replica.member)
            for one in database.admin.shards(name)}


def placed(database: Any, name: str, is_so: Callable[[dict[int, list[str]]], object] = bool) -> dict[int, list[str]]:
    """Once they are so: the node that is asked may hear of a change after who made it, and not of all replicas."""
    def found() -> dict[int, list[str]] | None:
        there = places(database, name)
        return there if is_so(there) else None

    there: dict[int, list[str]] = wait_for(found, f"the places of {name}")
    return there


def of_each(count: int) -> Callable[[dict[int, list[str]]], bool]:
    """Whether each shard has so many replicas."""
    return lambda there: {len(nodes) for nodes in there.values()} == {count}


def collection(database: Any, name: str, **options: Any) -> Any:
    made = database.create_collection(name, dim=DIM, metric="cosine", **options)
    ids = list(range(3_000))
    made.upsert(ids=ids, vectors=vectors(ids), metadata=[{"round": -1}] * len(ids))
    made.query(vectors([0])[0], k=3, timeout=60)  # kernels are compiled where there are none in the cache
    return made


def agree(database: Any, name: str) -> None:
    groups = list(placed(database, name))
    for label in [name] if len(groups) == 1 else [f"{name}@{group}" for group in groups]:
        agreed(database, label, deep=False)


def test_the_cluster_at_a_glance(grown: Grown, db: Any) -> None:
    info = wait_for(lambda: next((one for one in [db.admin.cluster.info()]
                                  if all(node.heard_s >= 0 for node in one.nodes)), None), "word of all")
    assert [node.name for node in info.nodes] == [*COORDINATORS, *SHARD_NODES]
    assert {node.name for node in info.nodes if node.voter} == set(COORDINATORS)
    assert info.leader in COORDINATORS


def test_a_replica_moves_under_load(db: Any) -> None:
    collection(db, "moving", replication_factor=3)
    (group, before), = placed(db, "moving", of_each(3)).items()
    to = next(node for node in SHARD_NODES if node not in before)
    plan = db.admin.cluster.plan("move", str(group), {"from": before[0], "to": to})
    assert [one.action for one in plan.steps] == ["move"]
    with Load(db, "moving") as load:
        job = run(db, "move", str(group), **{"from": before[0], "to": to})
        load.goes_on()
    assert (job.state, job.error) == ("done", "")
    placed(db, "moving", lambda there: there.get(group) == sorted({*before, to} - {before[0]}))
    load.check()
    agree(db, "moving")


def test_who_leads_knows_what_shards_hold_and_do(grown: Grown, db: Any) -> None:
    (group,) = placed(db, "moving")

    def told() -> bool:
        db.collection("moving").query(vectors([1])[0], k=3)
        load = grown.member(grown.leader()).membership.announcements.shard_loads().get(group)
        return load is not None and load.bytes >= 3_000 * DIM and load.busy > 0.0

    wait_for(told, "word of the shard")


def test_a_shard_splits_and_merges_under_load(db: Any) -> None:
    collection(db, "splitting", replication_factor=2)
    (group,) = placed(db, "splitting")
    with Load(db, "splitting") as load:
        job = run(db, "split", str(group))
        assert (job.state, job.error) == ("done", "")
        halves = list(placed(db, "splitting", lambda there: len(there) == 2 and group not in there))
        load.goes_on()
        job = run(db, "merge", str(halves[0]), **{"with": halves[1]})
        assert (job.state, job.error) == ("done", "")
        load.goes_on()
    load.check()
    placed(db, "splitting", lambda there: len(there) == 1)
    agree(db, "splitting")


def test_shards_of_tenants_merge(db: Any) -> None:
    """Records are where their tenants are, before a merge, during it and after; writes by a filter count each once."""
    docs = db.create_collection("tenants", dim=DIM, metric="cosine", shards=4, shard_key="tenant", replication_factor=2)
    tenants = [f"t{at}" for at in range(12)]

    def put(low: int, high: int) -> None:
        ids = list(range(low, high))
        docs.upsert(ids=ids, vectors=vectors(ids), metadata=[{"tenant": tenants[one % 12], "at": one} for one in ids])

    put(0, 600)
    groups = sorted(placed(db, "tenants", lambda there: len(there) == 4))
    stop, gone, failed = threading.Event(), [], []

    def write() -> None:
        at = 600
        while not stop.is_set():
            try:
                put(at, at + 24)
                gone.append(docs.delete(filter=f"at >= {at} and at < {at + 12}").deleted)
            except VecdbError as error:
                failed.append(f"{type(error).__name__}: {error}")
            at += 24

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for low in (0, 2):
            job = run(db, "merge", str(groups[low]), **{"with": groups[low + 1]})
            assert (job.state, job.error) == ("done", "")
    finally:
        stop.set()
        thread.join(60)
    assert not failed
    assert set(gone) == {12}, "each was deleted once, and told once"
    placed(db, "tenants", lambda there: len(there) == 2)
    assert docs.count() == 600 + 12 * len(gone)
    for at, tenant in enumerate(tenants):
        assert docs.count(f"tenant == '{tenant}'") == 50 + len(gone)
        found = docs.query(vectors([at])[0], k=1, filter=f"tenant == '{tenant}'")
        assert [hit.id for hit in found] == [at]
    assert docs.delete(filter=f"tenant == '{tenants[3]}'").deleted == 50 + len(gone)
    agree(db, "tenants")


def test_a_drained_node_ends_empty_and_can_be_removed(grown: Grown, db: Any) -> None:
    collection(db, "draining", shards=3, replication_factor=2)
    with pytest.raises(InvalidArgument, match="drain"):
        db.admin.cluster.remove_node(next(iter(placed(db, "draining", of_each(2)).values()))[0])
    with Load(db, "draining") as load:
        job = run(db, "drain", "s4")
        assert (job.state, job.error) == ("done", "")
        load.goes_on()
    for name in ("moving", "splitting", "draining"):
        placed(db, name, lambda there: not any("s4" in nodes for nodes in there.values()))
    load.check()
    agree(db, "draining")
    wait_for(lambda: not grown.member("s4").hosting.statuses().keys() - {""}, "nothing left on s4")
    with grown.connect("s4", "c1") as both:
        with Load(both, "draining") as load:  # s4 hears of it later than the others
            db.admin.cluster.remove_node("s4")
            time.sleep(3.0)
            load.goes_on()
        load.check()
    wait_for(lambda: "s4" not in [node.name for node in db.admin.cluster.info().nodes], "its being forgotten")
    frames = grown.member("s4").frames
    wait_for(lambda: not frames._streams, "an end of its calls, which all refuse and would be told of once a minute")
    assert frames.away() == {}


def test_replication_goes_down_and_up(db: Any) -> None:
    collection(db, "factors", shards=2, replication_factor=2)
    for factor in (1, 3):
        job = run(db, "replication", "factors", factor=factor)
        assert (job.state, job.error) == ("done", "")
        placed(db, "factors", of_each(factor))
    agree(db, "factors")


def test_the_command_line_tells_and_changes(grown: Grown, db: Any, monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("VECDB_URL", "grpc://" + ",".join(grown.url(name).removeprefix("grpc://")
                                                         for name in COORDINATORS))

    def vecdb(*words: str, code: int = 0) -> Any:
        assert main([*words, "--json"]) == code
        return json.loads(capsys.readouterr().out or "null")

    collection(db, "told", replication_factor=2)
    (group, nodes), = placed(db, "told", of_each(2)).items()
    to = next(node for node in SHARD_NODES[:3] if node not in nodes)
    assert {one["name"] for one in vecdb("node", "list")["nodes"]} >= {*COORDINATORS, "s1", "s2", "s3"}
    assert set(vecdb("node", "zones")["zones"]) >= {"a", "b"}
    assert vecdb("cluster", "status")["collections"] >= 1
    wait_for(lambda: not [one for one in vecdb("top")["unwell"] if one["collection"] == "told"], "all well")
    planned = vecdb("shard", "move", str(group), "--from", nodes[0], "--to", to, "--dry-run")
    assert (planned["job"], len(planned["plan"]["steps"])) == (None, 1)
    placed(db, "told", lambda there: there.get(group) == nodes)  # a dry run changes nothing
    assert main(["shard", "move", str(group), "--from", nodes[0], "--to", to]) == 2, "nobody can be asked"
    assert "--yes" in capsys.readouterr().err
    done = vecdb("shard", "move", str(group), "--from", nodes[0], "--to", to, "--yes")
    assert done["job"]["state"] == "done"
    assert done["job"]["id"] in [one["id"] for one in vecdb("job", "list", "--ended")["cluster"]]
    assert vecdb("job", "show", str(done["job"]["id"]))["kind"] == "move"
    agree(db, "told")  # with all replicas' answers, without which the command fails
    assert vecdb("shard", "verify", "told")["agree"]
    assert vecdb("shard", "repair", "told", "--yes")["job"]["state"] == "done"
    assert vecdb("cluster", "set", "repair_after_s", "900", "--yes")["settings"]["repair_after_s"] == 900
    assert vecdb("cluster", "set", "repair_after_s", "default", "--yes")["settings"]["repair_after_s"] == 600
    made = vecdb("cluster", "token", "create", "--ttl", "5m", "--role", "shard")
    assert made["id"] in [one["id"] for one in vecdb("cluster", "token", "list")["tokens"]]
    vecdb("cluster", "token", "revoke", made["id"], "--yes")
    assert made["id"] not in [one["id"] for one in vecdb("cluster", "token", "list")["tokens"]]
    vecdb("node", "drain", "s9", "--yes", code=3)


def test_a_damaged_replica_is_found_and_built_anew(grown: Grown, db: Any) -> None:
    collection(db, "scrubbed", replication_factor=3)
    (nodes,) = placed(db, "scrubbed", of_each(3)).values()
    node = grown.member(nodes[0])
    machine = node.hosting._places["scrubbed"].machine.service.machine
    machine.view = replace(machine.view, state=replace(machine.state, digest=machine.state.digest ^ 1))
    wait_for(lambda: not db.admin.verify_shard("scrubbed").agree, "a difference")
    assert run(db, "scrub", "scrubbed").state == "done"

    def mended() -> bool:
        found = db.admin.verify_shard("scrubbed", deep=True)
        return bool(found.agree and found.complete)

    wait_for(mended, "a replica that was built anew")


def test_a_file_that_rots_while_its_node_serves_it_is_found_and_the_replica_built_anew(grown: Grown, db: Any) -> None:
    collection(db, "rotten", replication_factor=3).optimize()
    (nodes,) = placed(db, "rotten", of_each(3)).values()
    node = next(one for one in nodes if one != db.admin.shards("rotten")[0].leader.rpartition("/")[0])
    place = grown.member(node).hosting._places["rotten"]

    def files() -> list[Any]:
        return sorted(place.machine.service.directory.glob("segments/*/vectors.vdb"))

    if not files():
        grown.member(node).hosting._database.optimize("rotten")
    (path,) = files()
    agreed(db, "rotten", deep=True)
    before = place.machine
    flip_byte(path, 20_000)
    (told,) = [one for one in db.admin.verify_shard("rotten", deep=True).replicas if one.state != "ok"]
    assert (told.name.rpartition("/")[0], told.state) == (node, "damaged")
    assert "vectors.vdb is damaged" in told.error
    assert path.exists(), "it goes on until the others are known to be whole"
    assert run(db, "scrub", "rotten").state == "done"
    wait_for(lambda: place.machine is not before and place.ill == "", "another state")
    agreed(db, "rotten", deep=True)
    assert not path.exists()
    assert db["rotten"].count() == 3_000


def test_a_node_that_joins_is_given_what_shards_lack(grown: Grown, db: Any) -> None:
    collection(db, "lacking", replication_factor=3)
    nodes = [one for one in db.admin.cluster.info().nodes if (one.role, one.state) == (Role.SHARD, NodeState.ACTIVE)]
    grown.propose(replication("lacking", len(nodes) + 1))
    wait_for(lambda: db.admin.shards("lacking")[0].lacks, "word of what it lacks")
    wait_for(lambda: db["lacking"].describe().details.get("replicas_lacking"), "a description that says so")
    grown.add("s5", grown.joining("s5", grown.token(roles=[Role.SHARD])))
    grown.takes_part("s5")
    placed(db, "lacking", of_each(len(nodes) + 1))
    agree(db, "lacking")
    assert db["lacking"].count() == 3_000
