"""Commands that change a cluster print their plan and ask; ``--dry-run`` prints it alone, ``--yes`` does not ask."""

import pytest

from vecdb.core.cluster import JobInfo, NodeInfo, Plan, PlanStep
from vecdb.core.errors import DeadlineExceeded
from vecdb.core.operations import ClusterInfo
from vecdb.core.shards import UNREACHABLE, ReplicaInfo, ShardInfo

URL = ["--url", "grpc://db.example:7700"]
NODES = (NodeInfo("n1", "n1:7702", voter=True, replicas=2), NodeInfo("n2", "n2:7702", voter=True, state="drained"))
READS = {"cluster", "cluster_jobs", "plan_job"}

CHANGES = [
    (["node", "remove", "n2"], ("remove_node", "n2"), "votes in the control group: 1 of 2"),
    (["node", "activate", "n2"], ("activate_node", "n2"), "it may be given replicas again"),
    (["cluster", "set", "repair_after_s", "60"], ("set_cluster_setting", "repair_after_s", 60.0), "600 becomes 60"),
    (["cluster", "set", "repair_after_s", "default"], ("set_cluster_setting", "repair_after_s", None), "becomes 600"),
    (["cluster", "token", "revoke", "abc"], ("revoke_join_token", "abc"), "no node joins with the token abc"),
    (["job", "cancel", "7"], ("cancel_job", 7), "job 7, split 4, copying"),
    (["shard", "rebalance", "--collection", "docs", "--to", "n2"],
     ("begin_job", "rebalance", "", {"collection": "docs", "to": "n2"}), "shard 4 moves"),
    (["shard", "rebalance"], ("begin_job", "rebalance", "", {}), "shard 4 moves"),
    (["node", "drain", "n1"], ("begin_job", "drain", "n1", {}), "shard 4 moves"),
]


@pytest.fixture
def changed(backend):
    """What was asked that is no question."""
    job = JobInfo(7, "split", "4", {}, "running", "copying")
    backend.operated = {
        "cluster": ClusterInfo("prod", "n1", "n1", 3, NODES), "cluster_jobs": [job],
        "plan_job": Plan("move", (PlanStep("move", "4", "shard 4 moves"),)), "begin_job": 7, "cancel_job": job,
        "remove_node": None, "activate_node": None, "set_cluster_setting": None, "revoke_join_token": None}
    return lambda: [one for one in backend.asked if one[0] not in READS]


@pytest.mark.parametrize(("argv", "asked", "words"), CHANGES, ids=lambda one: "-".join(one[:2]) if isinstance(
    one, list) else "")
def test_changes_are_shown_before_they_are_made(cli, changed, backend, argv, asked, words) -> None:
    extra = ["--no-wait"] if argv[0] in ("shard", "node") and asked[0] == "begin_job" else []
    ran = cli(*argv, *extra, "--dry-run", *URL)
    assert (ran.code, words in ran.out + ran.err, changed()) == (0, True, [])
    ran = cli(*argv, *extra, "--dry-run", "--json", *URL)
    assert (ran.code, bool(ran.json["plan"]["steps"]), changed()) == (0, True, [])
    ran = cli(*argv, *extra, *URL)
    assert (ran.code, "--yes" in ran.err, changed()) == (2, True, []), "nobody can be asked"
    ran = cli(*argv, *extra, "--yes", *URL)
    assert (ran.code, changed()) == (0, [asked])
    assert cli(*argv, *extra, "--yes", "--json", *URL).code == 0
    assert changed() == [asked] * 2


def test_a_node_that_holds_replicas_is_said_to_before_it_is_removed(cli, changed) -> None:
    ran = cli("node", "remove", "n1", "--dry-run", *URL)
    assert (ran.code, "vecdb node drain n1" in ran.err) == (0, True)
    for command in ("remove", "activate"):
        assert cli("node", command, "n9", "--yes", *URL).code == 3
    assert changed() == []


def test_settings_are_numbers_with_names(cli, changed) -> None:
    assert cli("cluster", "set", "repair_after", "60", "--yes", *URL).code == 2
    assert cli("cluster", "set", "repair_after_s", "soon", "--yes", *URL).code == 2
    assert cli("cluster", "set", "repair_after_s", "--yes", *URL).code == 2
    assert "repair_after_s" in cli("cluster", "set", *URL).out
    ran = cli("cluster", "set", "rebalance_auto", "7", "--yes", *URL)
    assert (ran.code, "must be a number from" in ran.err, "becomes" in ran.out) == (2, True, False), "no plan of it"
    assert changed() == []


@pytest.mark.parametrize("argv", [("node", "drain", "n2"), ("shard", "replicate", "docs", "--factor", "2")])
def test_where_nothing_is_to_be_done_no_job_is_begun(cli, changed, backend, argv) -> None:
    backend.operated["plan_job"] = Plan(argv[1], ())
    for flag in ("--yes", "--dry-run"):
        ran = cli(*argv, flag, "--no-wait", *URL)
        assert (ran.code, "nothing to do" in ran.out, changed()) == (0, True, [])


def test_a_job_that_has_ended_is_not_asked_about(cli, changed, backend) -> None:
    backend.operated["cluster_jobs"] = [JobInfo(7, "split", "4", {}, "done")]
    assert cli("job", "cancel", "7", *URL).code == 0
    assert changed() == [("cancel_job", 7)], "the cluster says how it stands"
    for form, said in (((), True), (("--json",), False)):
        ran = cli("job", "cancel", "7", *form, *URL)
        assert ("split 4, had ended before (" in ran.err) is said


def test_a_job_that_is_past_taking_back_is_not_cancelled(cli, changed, backend) -> None:
    backend.operated["cluster_jobs"] = [JobInfo(7, "split", "4", {}, "running", "retire")]
    for flag in ("--yes", "--dry-run"):
        ran = cli("job", "cancel", "7", flag, *URL)
        assert (ran.code, "past taking back" in ran.err, changed()) == (2, True, [])


def test_a_node_that_is_silent_is_said_to_be(cli, changed, backend) -> None:
    backend.operated["cluster"] = ClusterInfo("prod", "n1", "n1", 3, (
        NodeInfo("n1", "n1:7702", heard_s=1.0), NodeInfo("n2", "n2:7702", heard_s=70.6), NodeInfo("n3", "n3:7702")))
    for command in (("node", "list"), ("cluster", "status"), ("top", "--once")):
        told = cli(*command, *URL).out
        lines = {line.split()[0]: line for line in told.splitlines() if line.strip()}
        assert ["silent" in lines[name] for name in ("n1", "n2", "n3")] == [False, True, False], told


def test_how_long_ago_a_node_was_heard_is_said_before_it_counts_as_silent_and_who_was_not_since_an_election(
        cli, changed, backend) -> None:
    backend.operated["cluster"] = ClusterInfo("prod", "n1", "n1", 3, (
        NodeInfo("n1", "n1:7702", heard_s=1.0, silent_s=1.0), NodeInfo("n2", "n2:7702", heard_s=4.0, silent_s=4.0),
        NodeInfo("n3", "n3:7702", silent_s=2.0), NodeInfo("n4", "n4:7702", silent_s=60.0)))
    for command in (("node", "list"), ("cluster", "status"), ("top", "--once")):
        told = cli(*command, *URL).out
        lines = {line.split()[0]: line for line in told.splitlines() if line.strip()}
        assert "active, " not in lines["n1"], told
        assert "active, heard 4.0 s ago" in lines["n2"], told
        assert "active, not heard yet" in lines["n3"], told
        assert "not in 2.0 s" in lines["n3"], told
        assert "active, silent" in lines["n4"], told


@pytest.mark.parametrize(("nodes", "unheard", "words"), [
    ((), ("n1", "n2", "n3"), "prod waits for word of n1, n2, n3"), ((), (), "waits for word of its nodes"),
    ((NodeInfo("n1", "n1:7702", heard_s=1.0),), ("n3",), "prod waits for word of n3")])
def test_a_cluster_that_is_not_whole_yet_says_whom_it_waits_for(cli, changed, backend, nodes, unheard, words) -> None:
    backend.operated["cluster"] = ClusterInfo("prod", "n1", "n1", 3, nodes, unheard=unheard)
    for form in ((), ("--json",)):
        ran = cli("cluster", "status", *form, *URL)
        assert (ran.code, words in ran.err) == (11, True), ran.err
        assert ("founding" in ran.out) is (not nodes and not form)
        assert cli("node", "list", *form, *URL).code == (0 if nodes else 11)
    assert ran.json["unheard"] == list(unheard)


def test_a_disk_that_is_nearly_full_is_told_with_how_its_node_is(cli, changed, backend) -> None:
    rooms = {"n1": (5 << 20, 100 << 20), "n2": (63 << 20, 256 << 20), "n3": (65 << 20, 256 << 20),
             "n4": (9 << 30, 200 << 30), "n5": (11 << 30, 800 << 30)}
    backend.operated["cluster"] = ClusterInfo("prod", "n1", "n1", 3, tuple(
        NodeInfo(name, f"{name}:7702", heard_s=1.0, silent_s=1.0,
                 stats={"disk_free_bytes": float(free), "disk_total_bytes": float(total)})
        for name, (free, total) in rooms.items()))
    for command in (("node", "list"), ("cluster", "status"), ("top", "--once")):
        told = cli(*command, *URL).out
        lines = {line.split()[0]: line for line in told.splitlines() if line.strip()}
        assert "active, disk full" in lines["n1"], told
        assert all("active, disk nearly full" in lines[name] for name in ("n2", "n4")), told
        assert not any("full" in lines[name] for name in ("n3", "n5")), told
    backend.shard_list = [ShardInfo("", 0, "n1/1"), ShardInfo("docs", 4, None, (
        ReplicaInfo("n1/4", "n1", "halted"), ReplicaInfo("n3/4", "n3", "ok")))]
    ran = cli("doctor", "--quick", "--json", *URL)
    found = {one["name"]: one for one in ran.json["checks"]}
    assert found["room of nodes"]["found"].startswith("n1 (disk full, 5.0 MiB free), n2 (disk nearly full, ")
    assert "n3" not in found["room of nodes"]["found"]
    assert found["shards"]["advice"].startswith("make room on the disk of n1, ")


def test_a_list_of_nodes_says_which_clock_and_which_disk_are_off(cli, changed, backend) -> None:
    backend.operated["cluster"] = ClusterInfo("prod", "n1", "n1", 3, (
        NodeInfo("n1", "n1:7702", heard_s=1.0, stats={"sync_slowest_s": 0.01, "clock_off_s": 3.0}),
        NodeInfo("n2", "n2:7702", heard_s=1.0, stats={"sync_slowest_s": 1.5}),
        NodeInfo("n3", "n3:7702", heard_s=1.0, stats={"clock_off_s": -120.0})))
    lines = {line.split()[0]: line for line in cli("node", "list", *URL).out.splitlines() if line.strip()}
    assert "off" not in lines["n1"] + lines["n2"]
    assert "disk took" not in lines["n1"] + lines["n3"]
    assert "its disk took 1.5 s" in lines["n2"]
    assert "its clock -120 s off" in lines["n3"]


def test_a_cluster_that_nobody_leads_is_told_as_one_node_knows_it_with_whom_it_does_not_reach(cli, changed, backend
                                                                                                ) -> None:
    backend.operated["cluster"] = ClusterInfo("prod", "n1", None, 3, (
        NodeInfo("n1", "n1:7702"), NodeInfo("c1", "c1:7702", heard_s=-1.0)), 1, 1)
    backend.shard_list = [ShardInfo("", 0, None, (
        ReplicaInfo("n1/1", "n1", "ok"), ReplicaInfo("c1/2", "c1", UNREACHABLE, error="it does not answer (refused)")))]
    for command in (["cluster", "status"], ["node", "list"]):
        ran = cli(*command, *URL)
        assert ran.code == 11
        assert "what n1 knows by itself" in ran.err
        assert "c1 is not reached (it does not answer (refused))" in ran.err
        assert "c1:7702" in ran.out
        assert "never" not in ran.out, "n1 cannot tell whom it would have heard"
    ran = cli("cluster", "status", "--json", *URL)
    assert (ran.code, ran.json["leader"], list(ran.json["unreached"])) == (11, None, ["c1"])
    ran = cli("doctor", "--quick", "--json", *URL)
    found = {one["name"]: one["found"] for one in ran.json["checks"]}
    assert ran.code == 11
    assert "nobody is known to lead" in found["keys"]
    assert "c1 does not" in found["shards"]
    assert all(one[0] != "cluster_jobs" for one in backend.asked), "whom should it ask?"


def test_the_cluster_at_a_glance_names_shards_that_nobody_leads(cli, changed, backend) -> None:
    backend.shard_list = [ShardInfo("", 0, "n1/1"), ShardInfo("docs", 4, None),
                          ShardInfo("old", 3, None, (), "retired"), ShardInfo("logs", 5, "n1/5")]
    ran = cli("cluster", "status", *URL)
    assert (ran.code, "nobody leads docs (shard 4):" in ran.err) == (11, True)
    ran = cli("cluster", "status", "--json", *URL)
    assert (ran.code, ran.json["leaderless"]) == (11, [{"collection": "docs", "shard": 4}])
    backend.shard_list[1] = ShardInfo("docs", 4, "n2/4")
    ran = cli("cluster", "status", "--json", *URL)
    assert (ran.code, ran.json["leaderless"]) == (0, [])


def test_doctor_looks_on_where_one_question_has_no_answer(cli, docs, backend, monkeypatch) -> None:
    def late(call=None):
        raise DeadlineExceeded("the deadline passed before node c1 answered")

    monkeypatch.setattr(backend, "list_keys", late)
    ran = cli("doctor", "--quick", "--json", *URL)
    found = {one["name"]: (one["state"], one["found"]) for one in ran.json["checks"]}
    assert found["keys"] == ("warn", "the deadline passed before node c1 answered")
    assert found["collection docs"][0] == "ok"
