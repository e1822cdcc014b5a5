"""``vecdb shard``, ``vecdb cluster`` and what doctor says of a cluster, over the double."""

import socket
import ssl
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import vecdb
from vecdb.core.cluster import JobInfo, Plan, PlanStep
from vecdb.core.errors import Unavailable, Unsupported
from vecdb.core.shards import ReplicaDigest, ReplicaInfo, ShardInfo, ShardVerification

URL = ["--url", "grpc://db.example:7700"]


def replica(node: str, group: int, state: str = "ok", role: str = "follower", lag: int = 0, **more) -> ReplicaInfo:
    if state == "unreachable":
        return ReplicaInfo(f"{node}/{group}", node, state, error="n3 does not answer")
    return ReplicaInfo(f"{node}/{group}", node, state, role, 3, 1_700, 1_700 - lag, 1, 1_701, 5 << 20, lag, 0, **more)


@pytest.fixture
def cluster(backend):
    """The control group and two collections; of logs a replica is away."""
    backend.shard_list = [
        ShardInfo("", 0, "n1/0", (replica("n1", 0, role="leader"), replica("n2", 0), replica("n3", 0))),
        ShardInfo("docs", 4, "n2/4", (replica("n1", 4, lag=7), replica("n2", 4, role="leader"), replica("n3", 4))),
        ShardInfo("logs", 5, "n1/5", (replica("n1", 5, role="leader"), replica("n2", 5),
                                      replica("n3", 5, "unreachable"))),
    ]
    return backend.shard_list


def compared(name: str, *replicas: ReplicaDigest, agree: bool = True, complete: bool = True) -> ShardVerification:
    return ShardVerification(name, 4, 1_700, replicas, agree, complete)


GOOD = [ReplicaDigest(f"n{n}/4", "ok", "ab12", 50, "ab12") for n in (1, 2, 3)]


def test_list(cli, cluster) -> None:
    ran = cli("shard", "list", *URL)
    assert ran.code == 0
    lines = {line.split()[0]: line for line in ran.out.splitlines() if line.strip()}
    assert "n1/0" in lines["(control)"]
    assert ["well" in lines["docs"], "n2/4" in lines["docs"], "n1, n2, n3" in lines["docs"], "7" in lines["docs"]] == [
        True] * 4
    assert "n3 unreachable" in lines["logs"]
    cluster[1] = replace(cluster[1], replicas=(*cluster[1].replicas[1:], replica("n1", 4, "catching up", lag=1_699)))
    assert "n1 catching up (1 of 1,700)" in cli("shard", "list", *URL).out
    assert cli("shard", "status", "docs", *URL).code == 4
    cluster[1] = replace(cluster[1], replicas=(replica("n1", 4, lag=7), *cluster[1].replicas[:2]))
    told = cli("shard", "list", *URL, "--json").json["shards"]
    assert [(one["collection"], one["group"], one["leader"], one["healthy"]) for one in told] == [
        ("", 0, "n1/0", True), ("docs", 4, "n2/4", True), ("logs", 5, "n1/5", False)]
    assert told[1]["replicas"][0]["lag"] == 7
    cluster.clear()
    assert "no collections" in cli("shard", "list", *URL).out


def test_a_description_says_how_far_behind_each_replica_is(cli, cluster, backend) -> None:
    for name in ("docs", "logs", "alone"):
        assert cli("collection", "create", name, "--dim", "4", *URL).code == 0
    backend.shard_list.append(ShardInfo("alone", 6, "n1/6", (replica("n1", 6, role="leader"),)))
    told = {name: cli("collection", "describe", name, *URL, "--json").json for name in ("docs", "logs", "alone")}
    assert [(one["shard"], one["name"], one["lag"]) for one in told["docs"]["replicas"]] == [
        (4, "n1/4", 7), (4, "n2/4", 0), (4, "n3/4", 0)]
    assert [(one["state"], one["lag"]) for one in told["logs"]["replicas"]][2] == ("unreachable", -1)
    assert "replicas" not in told["alone"], "there is nobody to be behind"
    lines = cli("collection", "describe", "docs", *URL).out.splitlines()
    assert [line.split()[-1] for line in lines if line.split()[:1] == ["4"]] == ["7", "0", "0"]


def test_status(cli, cluster) -> None:
    ran = cli("shard", "status", "docs", *URL)
    assert ran.code == 0
    assert ["docs, shard 4: well" in ran.out, "n1/4" in ran.out, "1,693" in ran.out, "1..1,701" in ran.out,
            "5.0 MiB" in ran.out] == [True] * 5
    ran = cli("shard", "status", *URL)
    assert ran.code == 4, "a replica is away"
    assert "n3 does not answer" in ran.out
    assert cli("shard", "status", "docs", "logs", *URL, "--json").json["healthy"] is False
    cluster[1] = ShardInfo("docs", 4, None, (replica("n1", 4, role="candidate", member=False),))
    ran = cli("shard", "status", "docs", *URL)
    assert ran.code == 4
    assert "nobody leads" in ran.out
    assert "no member" in ran.out
    assert cli("shard", "status", "nope", *URL).code == 3


@pytest.mark.parametrize(("found", "code", "word"), [
    (compared("docs", *GOOD), 0, "all hold the same"),
    (compared("docs", GOOD[0]), 0, "it holds what was written"),
    (compared("docs", *GOOD[:2], ReplicaDigest("n3/4", "ok", "ff00", 51), agree=False), 6, "they differ"),
    (compared("docs", *GOOD[:2], ReplicaDigest("n3/4", "damaged", "ab12", 50, "ff00")), 6, "one is damaged"),
    (compared("docs", *GOOD[:2], ReplicaDigest("n3/4", "unreachable", error="away"), complete=False), 11,
     "not all did"),
])
def test_verify(cli, cluster, backend, found, code: int, word: str) -> None:
    backend.verified = {"docs": found, "logs": compared("logs", *GOOD)}
    ran = cli("shard", "verify", "docs", *URL)
    assert (ran.code, word in ran.out, "1,700" in ran.out) == (code, True, True)
    assert "ff00" not in ran.out or not found.agree, "read again only when asked"
    ran = cli("shard", "verify", "--deep", *URL, "--json")
    assert ran.code == code
    assert [one["collection"] for one in ran.json["shards"]] == ["docs", "logs"], "all but the control group"
    assert (ran.json["agree"], ran.json["complete"]) == (found.agree, found.complete)
    assert ran.json["shards"][1]["replicas"][0] == {"name": "n1/4", "state": "ok", "digest": "ab12", "records": 50,
                                                    "deep": "ab12", "error": ""}


def test_verify_of_what_nobody_leads_names_the_replicas_and_goes_on_with_the_others(cli, cluster, backend,
                                                                                      monkeypatch) -> None:
    why = "nobody leads the shard, so no place in its log can be marked to compare at"
    unled = replace(compared("docs", ReplicaDigest("n1/4", "unchecked", error=why), complete=False), log_index=0)
    backend.verified = {"docs": unled, "logs": compared("logs", *GOOD)}
    ran = cli("shard", "verify", *URL)
    assert (ran.code, "docs, shard 4: not compared" in ran.out, "all hold the same" in ran.out) == (11, True, True)
    assert cli("shard", "verify", *URL, "--json").json["shards"][0]["replicas"][0]["error"] == why
    limits = []

    def verify_shard(name, deep=False, call=None):
        limits.append(call.deadline - time.monotonic())
        if name == "docs":
            raise Unavailable("no leader of 'docs' answered in time")
        return compared("logs", *GOOD)

    monkeypatch.setattr(backend, "verify_shard", verify_shard)
    ran = cli("shard", "verify", "--timeout", "3s", *URL)
    assert (ran.code, "no leader of 'docs'" in ran.err, "all hold the same" in ran.out) == (11, True, True)
    ran = cli("shard", "verify", *URL, "--json")
    assert (ran.code, ran.json["complete"], ran.json["agree"]) == (11, False, True)
    assert all(one <= 3 for one in limits[:2])
    assert all(3 < one <= 60 for one in limits[2:])


def test_verify_says_the_worst(cli, cluster, backend) -> None:
    backend.verified = {"docs": compared("docs", *GOOD, complete=False), "logs": compared("logs", *GOOD, agree=False)}
    assert cli("shard", "verify", *URL).code == 6
    cluster.clear()
    ran = cli("shard", "verify", *URL)
    assert (ran.code, "no collections" in ran.out) == (0, True)


def test_show(cli, cluster, backend) -> None:
    backend.verified = {"docs": compared("docs", *GOOD), "logs": compared("logs", GOOD[0], complete=False)}
    backend.operated = {"cluster_jobs": [JobInfo(3, "split", "4", {}, "running", "copying"),
                                         JobInfo(4, "merge", "8", {"with": 4}, "waiting"),
                                         JobInfo(5, "move", "5", {}, "running")]}
    ran = cli("shard", "show", 4, *URL)
    assert ran.code == 0
    for words in ("docs, shard 4: well", "0000000000000000 to ffffffffffffffff, 100.0%", "n1 (east), n2, n3",
                  "led by n2/4", "at log index 1,700: all hold the same", "ab12", "copying"):
        assert words in ran.out
    told = cli("shard", "show", "docs", *URL, "--json").json
    assert (told["group"], told["range"], told["epoch"]) == (4, {"first": 0, "last": (1 << 64) - 1}, 9)
    assert [job["id"] for job in told["jobs"]] == [3, 4]
    assert told["digests"]["agree"] is True
    assert cli("shard", "show", "docs", "--no-digests", "--json", *URL).json["digests"] is None
    ran = cli("shard", "show", "logs", *URL)
    assert (ran.code, "n3 unreachable" in ran.out) == (4, True)
    assert "(control), shard 0" in cli("shard", "show", 0, *URL).out
    assert cli("shard", "show", 9, *URL).code == 3
    assert cli("shard", "show", "nope", *URL).code == 3


def test_a_shard_that_others_took_the_place_of_is_said_to_go(cli, cluster) -> None:
    gone = replace(cluster[1], group=8, state="retired", leader=None)
    cluster[:] = [replace(cluster[1], state="active"), replace(cluster[1], group=9, state="loading"), gone]
    lines = {line.split()[1]: line for line in cli("shard", "list", *URL).out.splitlines() if "docs" in line}
    assert "retired, others took its place" in lines["8"]
    assert "being filled, well" in lines["9"]
    assert "filled" not in lines["4"]
    assert [one["state"] for one in cli("shard", "list", "--json", *URL).json["shards"]] == [
        "active", "loading", "retired"]
    found = {one["name"]: one["state"] for one in cli("doctor", "--quick", "--json", *URL).json["checks"]}
    assert found["shards"] == "ok", "that nobody leads what goes is no fault"


def test_show_of_a_collection_with_several(cli, cluster, backend) -> None:
    cluster.append(replace(cluster[1], group=8))
    backend.verified = {"docs@8": compared("docs", *GOOD, agree=False)}
    ran = cli("shard", "show", "docs", *URL)
    assert (ran.code, "has 2 shards" in ran.err) == (2, True)
    for what in ("8", "docs@8"):
        ran = cli("shard", "show", what, *URL)
        assert (ran.code, "50.0%" in ran.out, "they differ" in ran.out) == (0, True, True)


def test_transfer_leader(cli, cluster, backend, monkeypatch) -> None:
    ran = cli("shard", "transfer-leader", "docs", "--to", "n2", "--yes", *URL)
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "docs: n2/4 leads")
    told = {"collection": "docs", "shard": 4, "leader": "n2/4"}
    assert cli("shard", "transfer-leader", 4, "--yes", *URL, "--json").json == told
    assert "(control): n1/0 leads" in cli("shard", "transfer-leader", "--control", "--yes", *URL).out
    assert backend.handed == [("docs", "n2"), ("docs", None), ("", None)]
    assert cli("shard", "transfer-leader", "--yes", *URL).code == 2
    assert cli("shard", "transfer-leader", "docs", "--control", "--yes", *URL).code == 2
    ran = cli("shard", "transfer-leader", "docs", "--to", "n3", "--dry-run", *URL)
    assert (ran.code, "n2/4 hands the leadership to n3" in ran.out) == (0, True)
    assert cli("shard", "transfer-leader", "docs", *URL).code == 2, "nobody can be asked"
    for given in (["docs", "--dry-run"], ["docs", "--yes"], ["--control", "--yes"]):
        ran = cli("shard", "transfer-leader", *given, "--to", "n9", *URL)
        assert (ran.code, ran.out) == (2, ""), "before a plan is shown"
        assert "n9 holds no replica of" in ran.err
        assert "n1, n2, n3" in ran.err
    assert len(backend.handed) == 3
    for error, code in ((Unavailable("it did not work out"), 11), (Unsupported("alone"), 9)):
        def fail(name, to=None, call=None, error=error) -> None:
            raise error

        monkeypatch.setattr(backend, "transfer_leader", fail)
        assert cli("shard", "transfer-leader", "docs", "--yes", *URL).code == code


def test_a_shard_that_is_changed_is_named_by_its_collection_too(cli, cluster, backend) -> None:
    backend.operated = {"plan_job": Plan("any", (PlanStep("move", "4", "shard 4 moves"),))}
    for argv, asked in ((["move", "docs", "--from", "n1", "--to", "n4"], ("move", "4", {"from": "n1", "to": "n4"})),
                        (["move", "4", "--from", "n1", "--to", "n4"], ("move", "4", {"from": "n1", "to": "n4"})),
                        (["split", "docs"], ("split", "4", {})),
                        (["merge", "docs@4", "5"], ("merge", "4", {"with": 5}))):
        assert cli("shard", *argv, "--dry-run", *URL).code == 0
        assert backend.asked.pop()[1:] == asked
    cluster.append(replace(cluster[1], group=9))
    ran = cli("shard", "split", "docs", "--dry-run", *URL)
    assert (ran.code, "4, 9" in ran.err) == (2, True), "it says which there are"
    assert cli("shard", "split", "none", "--dry-run", *URL).code == 3


def test_transfer_leader_says_who_leads_or_fails(cli, cluster, backend, monkeypatch) -> None:
    led, asked = cluster[1], []

    def shards(name=None, call=None, after=3) -> list[ShardInfo]:
        asked.append(name)
        return [led if len(asked) >= after else replace(led, leader=None)]

    monkeypatch.setattr(backend, "shards", shards)
    ran = cli("shard", "transfer-leader", "docs", "--yes", *URL)
    assert (ran.code, ran.out.splitlines()[-1], asked) == (0, "docs: n2/4 leads", ["docs"] * 3)
    monkeypatch.setattr(backend, "shards", lambda name=None, call=None: shards(name, after=10_000))
    ran = cli("shard", "transfer-leader", "docs", "--timeout", "0.3s", "--yes", *URL, "--json")
    assert (ran.code, ran.out, ran.error["kind"]) == (11, "", "Unavailable")


def test_nodes_are_completed(cli, cluster) -> None:
    from vecdb.cli.completing import nodes

    assert nodes(SimpleNamespace(params={"url": "grpc://a:1", "data": None, "name": "docs"}), "n") == ["n1", "n2", "n3"]
    assert nodes(SimpleNamespace(params={"url": "grpc://a:1", "data": None}), "n2") == ["n2"]
    assert nodes(SimpleNamespace(params={"url": "grpc://a:1", "data": None, "name": "nope"}), "") == []


# -- certificates


def test_certificates_of_a_cluster(cli, tmp_path: Path) -> None:
    made = ["cluster", "certs", "--nodes", "n1, n2,n3", "--out", "certs", "--name", "prod"]
    ran = cli(*made, "--host", "n1=10.0.0.1", "--host", "n1=db.example", "--days", "30")
    assert ran.code == 0
    names = ["ca.key", "ca.pem", *(f"n{n}.{kind}" for n in (1, 2, 3) for kind in ("key", "pem"))]
    assert sorted(line.rpartition("/")[2] for line in ran.out.split()) == names
    assert "keep certs/ca.key" in ran.err
    before = (tmp_path / "certs" / "n1.pem").read_bytes()
    again = cli(*made)
    assert (again.code, again.out) == (0, "")
    assert "nothing to do" in again.err
    assert cli(*made, "--json").json == {"cluster": "prod", "written": []}
    assert len(cli(*made, "--renew", "--json").json["written"]) == 6
    assert (tmp_path / "certs" / "n1.pem").read_bytes() != before
    for wrong in (["--nodes", "n1"], ["--nodes", "N_1", "--name", "prod"], ["--name", "prod"],
                  ["--nodes", ",", "--name", "prod"], ["--nodes", "n1", "--name", "other"],
                  ["--nodes", "n1", "--name", "prod", "--host", "10.0.0.1"],
                  ["--nodes", "n1", "--name", "prod", "--host", "n9=10.0.0.1"],
                  ["--nodes", "n1", "--name", "prod", "--days", "0"]):
        assert cli("cluster", "certs", "--out", "certs", *wrong).code == 2


CLUSTER = """
[server]
node_id = "n1"
grpc_port = 0
http_port = 0
[cluster]
name = "prod"
nodes = {nodes}
"""


def test_certificates_are_for_the_nodes_that_are_configured(cli, tmp_path: Path) -> None:
    (tmp_path / "vecdb.toml").write_text(CLUSTER.format(nodes='{n1 = "localhost:7702", n2 = "localhost:7703"}'))
    told = cli("cluster", "certs", "--out", "certs", "--json").json
    assert told["cluster"] == "prod"
    assert {Path(one).name for one in told["written"]} == {"ca.key", "ca.pem", "n1.key", "n1.pem", "n2.key", "n2.pem"}


# -- doctor


def checks(ran) -> dict[str, dict]:
    return {one["name"]: one for one in ran.json["checks"]}


def test_doctor_of_a_cluster(cli, docs, backend, cluster) -> None:
    backend.verified = {"docs": compared("docs", *GOOD)}
    del cluster[2]
    ran = cli("doctor", *URL, "--json")
    found = checks(ran)
    assert found["shards"]["state"] == "ok"
    assert "all hold the same" in found["collection docs"]["found"]
    assert ran.code == 0
    backend.verified = {"docs": compared("docs", *GOOD, agree=False)}
    ran = cli("doctor", *URL, "--json")
    assert (ran.code, checks(ran)["collection docs"]["state"]) == (6, "fail")
    assert cli("doctor", "--quick", *URL).code == 0
    for broken, state, code in ((replica("n3", 4, "joining"), "warn", 0), (replica("n3", 4, "halted"), "fail", 5)):
        cluster[1] = ShardInfo("docs", 4, "n2/4", (replica("n2", 4, role="leader"), broken))
        ran = cli("doctor", "--quick", *URL, "--json")
        assert (ran.code, checks(ran)["shards"]["state"]) == (code, state)
        assert f"docs: n3 {broken.state}" in checks(ran)["shards"]["found"]
    cluster[1] = ShardInfo("docs", 4, None, cluster[1].replicas)
    ran = cli("doctor", "--quick", *URL, "--json")
    assert (ran.code, "nobody leads" in checks(ran)["shards"]["found"]) == (11, True)
    cluster[0] = ShardInfo("", 0, None, (replica("n1", 0), replica("n2", 7, "joining", member=False),
                                         replica("n2", 0, "unreachable"), replica("n3", 0, "unreachable")))
    cluster[1] = ShardInfo("docs", 4, None, (replica("n1", 4), replica("n2", 4, "unreachable"),
                                             replica("n3", 4, "unreachable")))
    backend.verified = {}
    ran = cli("doctor", *URL, "--json")
    told = checks(ran)["shards"]
    assert ran.code == 11, "and nobody compares the replicas of what nobody leads"
    assert "n1, n2 answer; n3 does not; n2 began with an empty disk" in told["found"]
    assert "When a majority is lost" in told["advice"]


def test_doctor_knows_that_nodes_which_answer_need_not_be_started(cli, docs, backend, cluster) -> None:
    del cluster[2]
    cluster[1] = ShardInfo("docs", 4, None, (
        replica("n1", 4), replica("n2", 9, member=False), replica("n2", 4, "unreachable"),
        replica("n3", 8, role="learner", lag=3)))
    told = checks(cli("doctor", "--quick", *URL, "--json"))["shards"]
    assert "n1, n2, n3 answer; n2 began with an empty disk" in told["found"]
    assert "n3 is only a learner of docs" in told["found"]
    assert "start the nodes that do not answer" not in told["advice"]
    assert "of docs n1 has applied 1,700" in told["advice"]
    assert "When a majority is lost" in told["advice"]
    cluster[1] = ShardInfo("docs", 4, None, (replica("n1", 4), replica("n2", 4), replica("n3", 4)))
    found = checks(cli("doctor", "--quick", *URL, "--json"))
    assert "ask again in some seconds" in found["shards"]["advice"]
    assert (found["collection docs"]["state"], "nobody leads" in found["collection docs"]["found"]) == ("warn", True)


def test_doctor_tells_a_replica_that_joins_from_one_that_lost_its_log(cli, docs, backend, cluster) -> None:
    cluster[2] = ShardInfo("logs", 5, None, (replica("n1", 5), replica("n2", 5), replica("n3", 5)))
    new, old = replica("n3", 77, "joining", role="learner", member=False), replica("n3", 4, "unreachable")
    for leader, others, said in (("n2/4", (new, old), "n3 is built anew for docs"), ("n2/4", (new,), "n3 joins docs"),
                                 (None, (new,), "n3 joins docs"), (None, (new, old), "n3 began with an empty disk")):
        cluster[1] = ShardInfo("docs", 4, leader, (replica("n1", 4), replica("n2", 4), *others))
        told = checks(cli("doctor", "--quick", *URL, "--json"))["shards"]
        assert (said in told["found"], "empty disk" in told["found"]) == (True, leader is None and old in others)
        assert "ask again" in told["advice"], "most have their votes"


def test_replicas_that_a_shard_lacks_are_told_of(cli, docs, backend, cluster) -> None:
    del cluster[2]
    cluster[1] = replace(cluster[1], wanted=5)
    assert "docs, shard 4: well, 3 of 5 replicas" in cli("shard", "status", "docs", *URL).out
    told = cli("shard", "status", "docs", *URL, "--json").json["shards"][0]
    assert (told["wanted"], told["lacks"], told["healthy"]) == (5, 2, True)
    ran = cli("doctor", "--quick", *URL, "--json")
    found = checks(ran)["shards"]
    assert (ran.code, found["state"], "docs: well, 3 of 5 replicas" in found["found"]) == (0, "warn", True)
    assert "once there are nodes that can take them" in found["advice"]
    cluster[1] = replace(cluster[1], wanted=3)
    assert checks(cli("doctor", "--quick", *URL, "--json"))["shards"]["state"] == "ok"


def test_doctor_tells_of_what_was_set_aside(cli, docs, backend, cluster, tmp_path: Path) -> None:
    assert "set aside" not in checks(cli("doctor", "--quick", *URL, "--json"))
    backend.about["set_aside"] = {"folders": 2, "bytes": 3 << 20}
    ran = cli("doctor", "--quick", *URL, "--json")
    found = checks(ran)["set aside"]
    assert (ran.code, found["state"], "2 folders" in found["found"], "3.0 MiB" in found["found"],
            "shard verify" in found["advice"]) == (0, "warn", True, True, True)


def test_doctor_tells_of_what_was_set_aside_in_a_directory(cli, tmp_path: Path) -> None:
    folder = tmp_path / "n1"
    with vecdb.connect(folder) as db:
        db.create_collection("docs", dim=2)
    for name, length in (("raft.damaged-1", 1_000), ("collections/g00000001.damaged-12/00000001", 24)):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_bytes(bytes(length))
    (folder / "cluster.id").write_text("prod n1\n")
    found = checks(cli("doctor", "--quick", "--data", str(folder), "--json"))
    assert ("2 folders" in found["set aside"]["found"], "1.0 KiB" in found["set aside"]["found"]) == (True, True)


def test_doctor_asks_every_address_by_itself(cli, docs, backend, cluster, opened, monkeypatch) -> None:
    asked: list[int] = []
    about = backend.server

    def server() -> dict:
        asked.append(len(asked))
        if len(asked) == 2:
            raise Unavailable("nobody there")
        return {**about(), "wall_s": 1e9} if len(asked) == 3 else about()

    monkeypatch.setattr(backend, "server", server)
    ran = cli("doctor", "--quick", "--url", "grpc://a,b:7800,c", "--json")
    found = checks(ran)
    assert ran.code == 11
    assert [found[f"server {one}"]["state"] for one in ("a:7700", "b:7800", "c:7700")] == ["ok", "fail", "ok"]
    assert [found[f"clocks {one}"]["state"] for one in ("a:7700", "c:7700")] == ["ok", "warn"]
    assert [one["path"] for one in opened] == ["grpc://a,b:7800,c", "grpc://a:7700", "grpc://b:7800", "grpc://c:7700"]


def test_doctor_looks_for_the_other_nodes(cli, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as there, socket.socket() as gone:
        gone.bind(("127.0.0.1", 0))
        nodes = {"n1": 7702, "n2": there.getsockname()[1], "n3": gone.getsockname()[1]}
        told = "{" + ", ".join(f'{name} = "127.0.0.1:{port}"' for name, port in nodes.items()) + "}"
        (tmp_path / "vecdb.toml").write_text(CLUSTER.format(nodes=told))
        found = checks(cli("doctor", "--json"))
    assert found["cluster"]["state"] == "ok"
    assert "n1 (this one), n2, n3; 3 replicas" in found["cluster"]["found"]
    assert (found["node n2"]["state"], found["node n3"]["state"]) == ("ok", "warn")
    assert "node n1" not in found
    (tmp_path / "vecdb.toml").write_text(CLUSTER.format(nodes='{n1 = "127.0.0.1:7702", n2 = "127.0.0.1:1"}'))
    found = checks(cli("doctor", "--json"))
    assert (found["cluster"]["state"], "three survive" in found["cluster"]["advice"]) == ("warn", True)


class Peer:
    """A listener that ends TLS as a node's does."""

    def __init__(self, folder: Path, node: str) -> None:
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder / "ca.pem")
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.load_cert_chain(folder / f"{node}.pem", folder / f"{node}.key")
        self._context.set_alpn_protocols(["h2"])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(plain, server_side=True) as secured:
                    secured.sendall(b"\0" * 9)
            except OSError:
                continue

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


def test_doctor_checks_the_certificates_of_nodes(cli, tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    assert cli("cluster", "certs", "--nodes", "n1,n2,n3", "--out", "certs", "--name", "prod").code == 0
    assert cli("cluster", "certs", "--nodes", "n1", "--out", "strange", "--name", "prod").code == 0
    files = "\n" + "\n".join(f'{kind}_file = "certs/{name}"' for kind, name in (
        ("cert", "n1.pem"), ("key", "n1.key"), ("ca", "ca.pem")))
    with Peer(certs, "n2") as good, Peer(certs, "n2") as another:
        nodes = f'{{n1 = "127.0.0.1:7702", n2 = "127.0.0.1:{good.port}", n3 = "127.0.0.1:{another.port}"}}'
        settings = CLUSTER.format(nodes=nodes) + files
        (tmp_path / "vecdb.toml").write_text(settings)
        ran = cli("doctor", "--json")
        found = checks(ran)
        assert [found[name]["state"] for name in ("cluster", "cluster certificate", "cluster authority")] == ["ok"] * 3
        assert (found["node n2"]["state"], "ends 20" in found["node n2"]["found"]) == ("ok", True)
        assert (found["node n3"]["state"], ran.code) == ("fail", 4), "it has the certificate of n2"
        (tmp_path / "vecdb.toml").write_text(settings.replace("certs/n1", "strange/n1"))
        found = checks(cli("doctor", "--json"))
        assert found["node n2"]["state"] == "fail", "its authority does not know our certificate"
        (tmp_path / "vecdb.toml").write_text(settings.replace("certs/n1", "certs/n3"))
        found = checks(cli("doctor", "--json"))
        assert found["cluster certificate"]["state"] == "fail"
        assert "n1.prod.vecdb.internal" in found["cluster certificate"]["advice"]
        assert "node n2" not in found
    assert cli("cluster", "certs", "--nodes", "n1", "--out", "certs", "--name", "prod", "--renew", "--days",
               "3").code == 0
    (tmp_path / "vecdb.toml").write_text(settings)
    found = checks(cli("doctor", "--json"))
    assert found["cluster certificate"]["state"] == "warn"
    assert "--renew" in found["cluster certificate"]["advice"]
