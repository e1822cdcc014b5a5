"""Three coordinators and nodes that join them by a token, in one event loop: what lets them in, and what does not."""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

import vecdb
from tests.grown_nodes import COORDINATORS, Grown
from tests.replicated_nodes import free_ports, wait_for
from vecdb.cli import exits, main
from vecdb.cli.peers import here, members
from vecdb.client.collection import Collection
from vecdb.cluster.control import NodeEntry, node_of
from vecdb.cluster.control.commands import node_put, node_remove, node_state, token_revoke
from vecdb.config import load
from vecdb.core.access import Grant, NewKey
from vecdb.core.access import Role as KeyRole
from vecdb.core.cluster import NodeState, Role
from vecdb.core.errors import NodeRemoved, PermissionDenied, Unauthenticated
from vecdb.rpc.peer_certificates import issue


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of certificates; two shard nodes are members."""
    with Grown(tmp_path_factory.mktemp("grown"), tls=True) as nodes:
        nodes.found()
        with nodes.connect("c2") as db:
            token = db.admin.cluster.create_join_token(3_600.0, ["shard"]).secret
        nodes.add("s1", nodes.joining("s1", token, zone="east", capacity=2.0))
        nodes.add("s2", nodes.joining("s2", token, zone="west", join=(nodes.nodes["c2"],)))
        nodes.takes_part("s1", "s2")
        yield nodes


def refused(grown: Grown, name: str, words: str) -> None:
    """Until a node that was started says that it does not get in, and why."""
    wait_for(lambda: any("could not join" in why and words in why for why in grown.reasons(name)), f"{words!r}")


def drop(grown: Grown, name: str) -> None:
    """Stop a node that never became one."""
    grown.stop([name])
    del grown.settings[name]


def test_who_joined_observes_and_everybody_knows_everybody(grown: Grown) -> None:
    status = grown.status()
    assert sorted(map(node_of, status.voters)) == list(COORDINATORS)
    assert {"s1", "s2"} <= set(map(node_of, status.learners))
    for name in ("c1", "s1", "s2"):
        nodes = grown.state(name).nodes
        assert {(one.name, one.role) for one in nodes.values()} >= {
            ("c1", Role.COORDINATOR), ("s1", Role.SHARD), ("s2", Role.SHARD)}
        assert (nodes["s1"].zone, nodes["s1"].capacity, nodes["s2"].zone) == ("east", 2.0, "west")
        assert nodes["s1"].client_address == grown.url("s1").removeprefix("grpc://")
        assert {*COORDINATORS, "s1", "s2"} <= set(grown.member(name).directory)


def test_the_leader_hears_of_all_of_them(grown: Grown) -> None:
    def heard() -> bool:
        told = grown.member(grown.leader()).membership.announcements
        return all(told.stats(name).get("disk_free_bytes", 0) > 0 and told.heard_s(name) < 5
                   for name in grown.running)

    wait_for(heard, "word of all nodes")


def test_all_start_again_in_any_order_without_a_token(grown: Grown) -> None:
    for order in (["s2", "c3", "s1", "c1", "c2"], ["c1", "s1", "s2", "c2", "c3"]):
        grown.stop(list(grown.running))
        for name in ("s1", "s2"):
            kept = grown.settings[name]
            grown.settings[name] = kept.model_copy(update={"cluster": kept.cluster.model_copy(update={
                "join": ("127.0.0.1:9",), "token": type(kept.cluster.token)("")})})
        grown.start(order)
        grown.takes_part(*order)
        assert set(map(node_of, grown.status().learners)) == {"s1", "s2"}


def test_a_shard_node_alone_finds_the_others_again(grown: Grown) -> None:
    before = grown.status().learners
    grown.stop(["s1"])
    grown.start(["s1"])
    grown.takes_part("s1")
    assert grown.status().learners == before, "the same replica"


@pytest.mark.parametrize(("kind", "words"), [
    ("wrong", "has no such token"), ("none", "none was given"), ("revoked", "has no such token"),
    ("expired", "has expired"), ("role", "is for nodes of the role coordinator, not shard")])
def test_a_token_that_does_not_fit(grown: Grown, kind: str, words: str) -> None:
    token = ""
    if kind == "wrong":
        token = "vdj_" + "a" * 12 + "_" + "b" * 52
    elif kind == "expired":
        token = grown.token(ttl_s=10.0, at_s=time.time() - 60)
    elif kind == "role":
        token = grown.token(roles=[Role.COORDINATOR])
    elif kind == "revoked":
        token = grown.token()
        grown.propose(token_revoke(token.split("_")[1]))
    name = f"x{kind}"
    before = grown.status().learners
    grown.add(name, grown.joining(name, token))
    refused(grown, name, words)
    assert name not in grown.state("c1").nodes
    assert grown.status().learners == before
    drop(grown, name)


def test_the_command_that_joins_asks_first(grown: Grown, tmp_path: Any, capfd: Any, monkeypatch: Any) -> None:
    """The folder it writes is served as it is; what the cluster refuses is told before anything is written."""
    monkeypatch.chdir(tmp_path)
    token, (port,) = grown.token(roles=[Role.SHARD]), free_ports(1)
    given = ["cluster", "join", "--node", "s7", "--address", f"127.0.0.1:{port}", "--name", "tests", "--certs",
             str(grown.path / "certificates"), "--at", f"127.0.0.1:1,{grown.nodes['c3']}", "--zone", "north", "--yes"]
    for argv, words in (
            (["--token", "vdj_" + "a" * 12 + "_" + "b" * 52], "has no such token"),
            (["--token", token, "--role", "coordinator"], "is for nodes of the role shard, not coordinator")):
        assert (main([*given, *argv]), words in capfd.readouterr().err, list(tmp_path.iterdir())) == (10, True, [])
    assert "s7" not in grown.state("c1").nodes, "it was only asked"
    assert main([*given, "--token", token]) == 0
    assert "tests would let it in" in capfd.readouterr().err
    monkeypatch.chdir(tmp_path / "s7")
    made = load().settings
    told = [entry.client_address for name, entry in sorted(grown.state("c1").nodes.items()) if entry.client_address]
    assert made.client.url == "grpc://" + ",".join([f"127.0.0.1:{port - 2}", *told[:6]]), "others, too"
    grown.add("s7", made.model_copy(update={"server": made.server.model_copy(update={
        "grpc_port": 0, "http_port": -1, "warm_up": False, "drain_s": 5.0})}))
    grown.takes_part("s7")
    assert grown.state("c1").nodes["s7"].zone == "north"
    grown.stop(["s7"])
    del grown.settings["s7"]
    grown.propose(node_remove("s7"))


def test_two_nodes_by_one_name(grown: Grown) -> None:
    wait_for(lambda: grown.member(grown.leader()).membership.announcements.report("s1"), "word of s1")
    token = grown.token()
    for name in ("s1", "c2"):
        others = tuple(address for node, address in grown.nodes.items() if node != name)
        grown.add("twin", grown.joining(name, token, folder=f"twin-{name}", join=others))
        refused(grown, "twin", "two nodes have this name")
        drop(grown, "twin")
        grown.takes_part(name)


@pytest.mark.parametrize("leads", [False, True])
def test_a_second_process_by_a_founder_s_name_gets_nowhere(grown: Grown, leads: bool) -> None:
    """Of the same settings, but for its address and an empty disk: as where a folder was copied."""
    leader = grown.leader()
    name = leader if leads else next(one for one in COORDINATORS if one != leader)
    (port,) = free_ports(1)
    grown.add("twin", grown.make(name, nodes={**grown.nodes, name: f"127.0.0.1:{port}"}, role="coordinator",
                                 folder=f"founder-{leads}"))
    wait_for(lambda: any("two nodes have this name" in why for why in grown.reasons("twin")), "its being refused")
    wait_for(lambda: any("node_twice" in why for why in grown.member(name).membership.warnings()), "word of the other")
    assert grown.reasons(name) == [], "it goes on"

    def told() -> bool:
        with grown.connect("s1") as db:
            checks = {one.name: one for one in members(db, 20.0)[0]}
        return "names of nodes" in checks and name in checks["names of nodes"].found

    wait_for(told, "what the doctor says")
    others = [one for one in grown.running if one not in (name, "twin")]
    assert {grown.member(one).directory[name] for one in others} == {grown.nodes[name]}
    assert all(grown.member(one).frames.connected(name) for one in others if one == grown.leader())
    drop(grown, "twin")
    grown.takes_part(name)
    assert grown.state("s1").nodes[name].address == grown.nodes[name]


def test_a_lost_disk_comes_back_as_an_observer_by_the_same_name(grown: Grown) -> None:
    token = grown.token()
    before = next(one for one in grown.status().learners if node_of(one) == "s2")
    settings = grown.settings["s2"]
    grown.stop(["s2"])
    shutil.rmtree(settings.data_dir)
    again = grown.joining("s2", token, zone="west")
    grown.add("s2", again)
    grown.takes_part("s2")  # not before the one that was there has not been heard from for a while
    status = grown.status()
    (after,) = [one for one in status.learners if node_of(one) == "s2"]
    assert after != before
    assert "s2" not in map(node_of, status.voters)
    assert grown.state("c1").nodes["s2"].address == again.cluster.advertise


def test_an_address_that_changes_is_taken_over(grown: Grown) -> None:
    (port,) = free_ports(1)
    settings = grown.settings["s1"]
    moved = settings.model_copy(update={"cluster": settings.cluster.model_copy(update={
        "advertise": f"127.0.0.1:{port}", "zone": "north"})})
    grown.stop(["s1"])
    grown.add("s1", moved)
    wait_for(lambda: all(grown.state(name).nodes["s1"].zone == "north"
                         and grown.member(name).directory["s1"] == f"127.0.0.1:{port}" for name in grown.running),
             "the new address")
    grown.takes_part("s1")


def test_a_clock_two_minutes_off_is_shown_by_name(grown: Grown, monkeypatch: pytest.MonkeyPatch) -> None:
    membership = grown.member("s1").membership
    late = SimpleNamespace(wall=lambda: time.time() + 120.0, monotonic=time.monotonic)
    monkeypatch.setattr(membership, "_clock", late)

    def shown() -> bool:
        with grown.connect("s2") as db:
            return next(one.stats.get("clock_off_s", 0.0) for one in db.admin.cluster.info().nodes
                        if one.name == "s1") > 100

    wait_for(shown, "the difference")
    with grown.connect("c1") as db:
        checks = {one.name: one for one in members(db, 20.0)[0]}
        assert "s1 is +120 s off" in checks["clocks of nodes"].found
        assert checks["nodes"].state == "ok"
    grown.ready("s1")


def test_certificates_of_another_cluster(grown: Grown, tmp_path: Any) -> None:
    token = grown.token()
    stranger = Grown(tmp_path, tls=True)
    with stranger:
        theirs = stranger.make("s9", join=tuple(grown.nodes.values()), token=token, advertise="127.0.0.1:7")
        grown.add("s9", theirs.model_copy(update={"data_dir": grown.path / "s9"}))
        refused(grown, "s9", "not by this cluster's authority")
        drop(grown, "s9")


def test_founders_with_certificates_of_two_authorities_say_so_on_both_sides(tmp_path: Any) -> None:
    dev, (http,) = tmp_path / "dev", free_ports(1)
    issue(dev, "dev", ["c3"])
    with Grown(tmp_path / "prod", tls=True) as prod:
        theirs = prod.make("c3", cluster="dev", nodes=prod.nodes, role="coordinator", folder="dev",
                           cert_file=dev / "c3.pem", key_file=dev / "c3.key", ca_file=dev / "ca.pem")
        prod.add("c3", theirs.model_copy(update={"server": theirs.server.model_copy(update={"http_port": http})}))
        prod.start(["c1"])

        def says(node: str, *words: str) -> bool:
            return any(all(word in why for word in words) for why in prod.reasons(node))

        amiss = "not by this cluster's authority"
        wait_for(lambda: says("c3", f"c1: {prod.nodes['c1']} shows", amiss, "c2: node c2 cannot be reached: connection "
                              "refused"), "what the newcomer says")
        wait_for(lambda: says("c1", f"c3: {prod.nodes['c3']} shows", amiss), "what the other side says")
        for node in ("c1", "c3"):
            assert prod.member(node).figures().refused["authority"] >= 1
            assert prod.member(node).figures().events["peer_certificate"] >= 1
        (check,) = here(prod.settings["c3"])
        assert check.state == "warn"
        assert amiss in check.found


def test_a_removed_node_stops_and_joins_anew(grown: Grown) -> None:
    token = grown.token()
    grown.add("s3", grown.joining("s3", token))
    grown.takes_part("s3")
    grown.propose(node_state("s3", NodeState.DRAINED))
    grown.propose(node_remove("s3"))
    wait_for(lambda: "s3" not in map(node_of, grown.status().learners), "its replica to be taken out")
    wait_for(lambda: any("was removed" in why for why in grown.reasons("s3")), "word of the removal")
    with grown.connect("s3") as db, pytest.raises(NodeRemoved):
        db.list_collections()
    wait_for(lambda: "s3" not in grown.member("c1").directory, "it to be forgotten")
    grown.stop(["s3"])
    grown.start(["s3"])
    grown.takes_part("s3")
    assert grown.state("c1").nodes["s3"].state is NodeState.ACTIVE


def test_a_node_that_was_down_when_it_was_removed_hears_of_it_from_the_others(grown: Grown) -> None:
    token = grown.token()
    grown.add("s4", grown.joining("s4", token))
    grown.takes_part("s4")
    grown.stop(["s4"])
    grown.propose(node_state("s4", NodeState.DRAINED))
    grown.propose(node_remove("s4"))
    wait_for(lambda: "s4" not in map(node_of, grown.status().learners), "its replica to be taken out")
    settings = grown.settings["s4"]
    grown.settings["s4"] = settings.model_copy(update={"cluster": settings.cluster.model_copy(update={
        "token": type(settings.cluster.token)("")})})
    grown.start(["s4"])
    wait_for(lambda: any("was removed" in why for why in grown.reasons("s4")), "word of the removal")
    drop(grown, "s4")


def test_who_joins_as_a_coordinator_votes(grown: Grown) -> None:
    token = grown.token(roles=[Role.COORDINATOR])
    grown.add("c4", grown.joining("c4", token, role="coordinator"))
    wait_for(lambda: "c4" in map(node_of, grown.status().voters), "a fourth vote")
    grown.takes_part("c4")
    grown.propose(node_state("c4", NodeState.DRAINED))
    grown.propose(node_remove("c4"))
    wait_for(lambda: "c4" not in map(node_of, grown.status().voters), "its vote to go")
    wait_for(lambda: any("was removed" in why for why in grown.reasons("c4")), "word of the removal")
    drop(grown, "c4")


def test_a_version_too_far_away(grown: Grown) -> None:
    token = grown.token()
    entry: NodeEntry = grown.state("c1").nodes["s1"]
    grown.propose(node_put(replace(entry, name="old", address="127.0.0.1:6", version="7.7.7")))
    try:
        grown.add("s7", grown.joining("s7", token))
        refused(grown, "s7", "one minor version apart")
        drop(grown, "s7")
    finally:
        grown.propose(node_state("old", NodeState.DRAINED))
        grown.propose(node_remove("old"))


@pytest.fixture(scope="module")
def admin(grown: Grown) -> NewKey:
    """From now on keys are asked for: for the last tests."""
    with grown.connect("s1") as db:
        assert db.list_collections() == []
        made: NewKey = db.admin.create_key("admin", [Grant(KeyRole.ADMIN)])
        return made


def test_keys_are_the_cluster_s(grown: Grown, admin: NewKey) -> None:
    key, secret = admin
    for name in ("c1", "s1", "s2"):
        wait_for(lambda name=name: key.id in grown.state(name).api_keys, "the key")  # type: ignore[misc]
        with grown.connect(name) as db, pytest.raises(Unauthenticated):
            db.list_collections()
        with vecdb.connect(grown.url(name), api_key=secret, insecure=True) as db:
            assert db.list_collections() == []
    with vecdb.connect(grown.url("s2"), api_key=secret, insecure=True) as db:
        reader, reading = db.admin.create_key("reader", [Grant(KeyRole.READ)])
        with vecdb.connect(grown.url("c3"), api_key=secret, insecure=True) as other:
            assert {one.id for one in other.admin.list_keys()} == {key.id, reader.id}
            other.admin.revoke_key(reader.id)
    wait_for(lambda: all(grown.state(name).api_keys[reader.id].revoked_s for name in grown.running), "the revocation")
    for name in ("c2", "s1"):
        with vecdb.connect(grown.url(name), api_key=reading, insecure=True) as db, pytest.raises(Unauthenticated):
            db.list_collections()
    grown.stop(["s1"])
    grown.start(["s1"])
    with vecdb.connect(grown.url("s1"), timeout=20) as db, pytest.raises(Unauthenticated):
        db.list_collections()
    grown.takes_part("s1")


def changes(db: Any) -> dict[str, Callable[[], object]]:
    """Every call that changes something, or that only an admin may make."""
    docs, server = Collection(db._session, "docs"), db.admin  # made without asking whether it is there
    calls: dict[str, Callable[[], object]] = {
        "upsert": lambda: docs.upsert([9], [[9.0] * 4]), "delete": lambda: docs.delete([1]),
        "delete where": lambda: docs.delete(filter="n == 1"), "update": lambda: docs.update_metadata([1], {"n": 2}),
        "stream": lambda: docs.upsert(records=({"id": n, "vector": [1.0] * 4} for n in range(2))),
        "optimize": docs.optimize,
        "create": lambda: db.create_collection("more", dim=4), "drop": lambda: db.drop_collection("docs"),
        "create_key": lambda: server.create_key("mine", [Grant(KeyRole.ADMIN)]), "list_keys": server.list_keys,
        "rotate_key": lambda: server.rotate_key("abcdefgh2345"),
        "revoke_key": lambda: server.revoke_key("abcdefgh2345"),
        "transfer_leader": lambda: server.transfer_leader("docs"), "transfer": lambda: server.transfer_leader("")}
    cluster = server.cluster
    return calls | {
        "begin": lambda: cluster.begin("drain", "s1"), "cancel": lambda: cluster.cancel(1),
        "set": lambda: cluster.set("repair_after_s", 60.0), "token": cluster.create_join_token,
        "revoke_token": lambda: cluster.revoke_join_token("x"), "activate": lambda: cluster.activate_node("s1"),
        "remove": lambda: cluster.remove_node("s1")}


def test_what_a_key_may_not_no_node_does_for_it(grown: Grown, admin: NewKey, monkeypatch: Any, capsys: Any) -> None:
    """Roles, collections and the end of a key: on coordinators, on shard nodes, and in direct mode."""
    with vecdb.connect(grown.url("c1"), api_key=admin.secret, insecure=True) as db:
        db.create_collection("docs", dim=4, shards=2, replication_factor=1, indexed_fields=["n"])
        db["docs"].upsert([1, 2], [[1.0] * 4, [2.0] * 4], [{"n": 1}, {"n": 2}])
        reader, stranger, short = (db.admin.create_key(name, grants, ttl_s) for name, grants, ttl_s in (
            ("reader", [Grant(KeyRole.READ)], 0.0), ("stranger", [Grant(KeyRole.WRITE, ("else*",))], 0.0),
            ("short", [Grant(KeyRole.ADMIN)], 1.0)))
    keys = {one.key.id for one in (reader, stranger, short)}
    wait_for(lambda: all(keys <= set(grown.state(name).api_keys) for name in grown.running), "the keys")
    for name, direct in ((name, direct) for name in grown.running for direct in (False, True)):
        with vecdb.connect(grown.url(name), api_key=reader.secret, insecure=True, direct=direct) as db:
            assert (db["docs"].count(), len(db["docs"].fetch([1, 2]))) == (2, 2)
            for what, change in changes(db).items():
                with pytest.raises(PermissionDenied):
                    pytest.fail(f"{what} at {name}: {change()}")
        with vecdb.connect(grown.url(name), api_key=stranger.secret, insecure=True, direct=direct) as db:
            assert db.list_collections() == []
            docs = Collection(db._session, "docs")
            reads = {"query": lambda docs=docs: docs.query([1.0] * 4), "count": docs.count, "get": lambda: db["docs"],
                     "fetch": lambda docs=docs: docs.fetch([1]), "scan": lambda docs=docs: list(docs.scan())}
            for what, ask in {**changes(db), **reads}.items():
                with pytest.raises(PermissionDenied):
                    pytest.fail(f"{what} at {name}: {ask()}")

        def over(name: str = name, direct: bool = direct) -> bool:
            try:
                with vecdb.connect(grown.url(name), api_key=short.secret, insecure=True, direct=direct) as db:
                    db["docs"].count()
            except Unauthenticated:
                return True
            return False

        wait_for(over, f"the end of a key at {name}")
    monkeypatch.setenv("VECDB_API_KEY", reader.secret)
    for argv in (["collection", "drop", "docs", "--yes"], ["key", "create", "mine"], ["node", "drain", "s1", "--yes"]):
        assert main([*argv, "--url", grown.url("s1"), "--insecure"]) == exits.DENIED
    capsys.readouterr()
    with vecdb.connect(grown.url("s2"), api_key=admin.secret, insecure=True) as db:
        assert (db.list_collections(), db["docs"].count()) == (["docs"], 2), "nothing of it was done"
