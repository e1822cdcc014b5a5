"""The reconciler against a judge: what is held follows the control state, whatever fails."""

from itertools import pairwise

import pytest

from tests.unit.services.hosted import SOON, Cluster, Disk, schema
from vecdb.core.errors import CollectionNotFound, DataCorrupted, DeadlineExceeded, StorageError, Unavailable
from vecdb.services.homes import folder_of
from vecdb.testing.disk import MemoryStore


@pytest.fixture
def cluster():
    made = Cluster()
    made.start()
    made.settle()
    yield made
    made.end()


# --- what should be -------------------------------------------------------------------------------


def test_collections_are_held_where_they_should_be_and_go_when_dropped(cluster):
    entries = [cluster.create(f"c{at}") for at in range(5)]
    cluster.settle()
    cluster.check()
    assert [entry.group for entry in entries] == [1, 2, 3, 4, 5]
    hosting = cluster.nodes["n2"].hosting
    assert hosting.replicator("c0").status().me == entries[0].replicas[1]
    assert hosting.group("c3") == 4
    assert hosting.marks("c3") == {7: "a mark"}
    for at in (0, 3):
        cluster.drop(f"c{at}")
    cluster.settle()
    cluster.world.run(2)
    cluster.check()
    for node in cluster.nodes.values():
        assert set(node.disk.logs) == {0, 2, 3, 5}
    with pytest.raises(CollectionNotFound):
        hosting.replicator("c0")
    with pytest.raises(CollectionNotFound):
        hosting.group("c0")


def test_with_more_nodes_than_replicas_each_holds_its_own():
    names = tuple(f"n{at}" for at in range(1, 6))
    cluster = Cluster(nodes=names)
    cluster.start()
    cluster.settle()
    entries = [cluster.create(f"c{at}") for at in range(10)]
    cluster.settle()
    for node in cluster.nodes.values():
        assert set(node.disk.rows) == {entry.name for entry in entries if node.name in entry.nodes}
    assert {node: sum(node in entry.nodes for entry in entries) for node in names} == dict.fromkeys(names, 6)
    elsewhere = next(entry for entry in entries if "n1" not in entry.nodes)
    node = cluster.nodes["n1"]
    with pytest.raises(Unavailable):
        node.hosting.replicator(elsewhere.name)
    assert node.loop.run(node.hosting.ready(elsewhere.name, None), 1) == elsewhere
    cluster.end()


def test_ready_waits_for_a_leader(cluster):
    node = cluster.nodes["n3"]
    loop = node.loop
    with pytest.raises(CollectionNotFound):
        loop.run(node.hosting.ready("a", None), 1)
    entry = cluster.create()
    assert cluster.world.run_until(lambda: "a" in node.control.state.collections, SOON)
    with pytest.raises(DeadlineExceeded):
        loop.run(node.hosting.ready("a", loop.time()), 1)
    assert loop.run(node.hosting.ready("a", loop.time() + SOON), SOON) == entry
    assert node.hosting.replicator("a").status().leader is not None


def test_a_stopped_host_leaves_everything_as_it_is(cluster):
    cluster.create()
    cluster.settle()
    node = cluster.nodes["n1"]
    node.loop.run(node.hosting.stop(), SOON)
    cluster.drop()
    cluster.world.run(20)
    assert "a" in node.disk.rows
    node.kill()
    node.start()
    cluster.settle()
    cluster.check()


# --- away -----------------------------------------------------------------------------------------


def test_what_was_dropped_or_made_anew_while_a_node_was_away(cluster):
    for name in "abc":
        cluster.create(name)
    cluster.settle()
    cluster.kill("n1")
    cluster.drop("a")
    cluster.drop("b")
    again = cluster.create("b")
    cluster.create("d")
    cluster.start("n1")
    cluster.settle()
    cluster.world.run(2)
    cluster.check()
    disk = cluster.nodes["n1"].disk
    assert {name: row.entry.folder for name, row in disk.rows.items()} == {
        "b": folder_of(again.group), "c": folder_of(3), "d": folder_of(5)}
    assert set(disk.logs) == {0, 3, 4, 5}


def test_power_cut_of_all_while_collections_are_made_leaves_no_group_without_voters():
    for seed in range(25):
        cluster = Cluster(seed)
        cluster.start()
        cluster.settle()
        for at in range(4):
            cluster.create(f"c{at}")
        cluster.world.run(cluster.world.random.uniform(0.0, 0.4))
        cluster.kill()
        cluster.start()
        cluster.settle()
        cluster.check()
        cluster.end()


def test_a_log_of_a_dropped_group_that_was_left_is_deleted(cluster):
    cluster.create()
    cluster.settle()
    disk = cluster.nodes["n2"].disk
    left = disk.logs[1]
    cluster.drop()
    cluster.settle()
    cluster.kill("n2")
    disk.logs[1] = left
    cluster.start("n2")
    cluster.settle()
    cluster.world.run(1)
    assert set(disk.logs) == {0}


# --- lost and damaged -----------------------------------------------------------------------------


def test_a_new_disk_joins_every_group_that_there_was_and_founds_nothing(cluster):
    before = cluster.create("old")
    cluster.settle()
    node = cluster.nodes["n1"]
    cluster.kill("n1")
    made = cluster.create("meanwhile")
    node.disk = Disk()
    cluster.start("n1")
    cluster.settle()
    cluster.world.run(1)
    cluster.check()
    assert node.hosting.founding.joined
    for group, entry in ((1, before), (2, made)):
        lost = next(one for one in entry.replicas if one.startswith("n1/"))
        assert lost not in cluster.judge.groups[group].voters
    later = cluster.create("later")
    cluster.settle()
    cluster.check()
    assert set(later.replicas) == cluster.judge.groups[3].voters == cluster.judge.groups[0].voters


def test_lost_logs_with_states_that_are_there(cluster):
    cluster.create()
    cluster.settle()
    cluster.world.run(1)
    node = cluster.nodes["n1"]
    cluster.kill("n1")
    node.disk.logs, node.disk.ledger = {}, MemoryStore()
    states = dict(node.disk.rows)
    cluster.start("n1")
    cluster.settle()
    cluster.world.run(1)
    cluster.check()
    assert node.disk.rows == states  # kept: only what it lacks comes
    assert node.hosting.founding.joined


@pytest.mark.parametrize("group", [0, 1])
def test_a_state_without_a_log_has_lost_it(cluster, group):
    cluster.create()
    cluster.settle()
    cluster.world.run(1)
    node = cluster.nodes["n1"]
    before = node.disk.logs[group].replica
    cluster.kill("n1")
    del node.disk.logs[group]
    cluster.start("n1")
    cluster.settle()
    cluster.world.run(1)
    cluster.check()
    assert node.disk.logs[group].replica != before


def test_a_node_that_is_alone_after_a_power_cut_opens_what_it_holds(cluster):
    cluster.create()
    cluster.settle()
    cluster.kill()
    cluster.start("n2")
    cluster.world.run(5)
    status = cluster.nodes["n2"].hosting.replicator("a").status()
    assert (status.state, status.leader) == ("ok", None)


def test_a_damaged_log_rejoins(cluster):
    cluster.create()
    cluster.settle()
    node = cluster.nodes["n1"]
    for group in (0, 1):
        before = node.disk.logs[group].replica
        cluster.kill("n1")
        node.disk.logs[group].damaged = True
        cluster.start("n1")
        cluster.settle()
        cluster.world.run(1)
        cluster.check()
        assert node.disk.logs[group].replica != before


@pytest.mark.parametrize("base", [1, 4])
def test_a_damaged_state_is_set_aside_and_comes_again(cluster, base):
    cluster.create()
    cluster.settle()
    cluster.world.run(1)
    node = cluster.nodes["n2"]
    cluster.kill("n2")
    node.disk.logs[1].base = base
    before = node.disk.logs[1].replica
    damaged = node.disk.rows["a"]
    damaged.damaged = True
    cluster.start("n2")
    cluster.settle()
    cluster.world.run(1)
    cluster.check()
    assert node.disk.aside == [damaged]
    assert (node.disk.logs[1].replica == before) == (base == 1)  # the log that has everything goes on
    assert [event for _, event, _ in node.told].count("replica_state_damaged") == 1


def test_a_damaged_control_state_deletes_nothing_and_brings_nothing_back():
    for seed in range(12):
        cluster = Cluster(seed)
        cluster.start()
        cluster.settle()
        for name in ("a", "b", "gone"):
            cluster.create(name)
        cluster.settle()
        cluster.drop("gone")
        cluster.create("gone")
        cluster.drop("gone")
        cluster.drop("a")
        cluster.create("a")
        cluster.settle()
        node = cluster.nodes["n1"]
        cluster.kill("n1")
        if seed % 3:
            node.disk.logs[0].base = seed % 3
        assert node.disk.control.flip(cluster.world.random, b"", b"\xff")
        cluster.start("n1")
        cluster.settle()
        cluster.world.run(1)
        cluster.check()
        assert [event for _, event, _ in node.told].count("control_state_damaged") == 1
        assert len(node.disk.aside) == 1
        cluster.end()


@pytest.mark.parametrize("failure", [StorageError("refused"), DataCorrupted("a flipped bit", path="x")])
def test_a_halted_replica_is_opened_anew(cluster, failure):
    cluster.create()
    cluster.settle()
    node = cluster.nodes["n1"]
    for _ in range(3):
        replica = node.driver.replicas[1]
        replica.machine.failure, replica.state, replica.error = failure, "halted", str(failure)
        with_failure = replica.machine
        assert cluster.world.run_until(lambda: not node.settled, SOON)
        cluster.settle()
        cluster.check()
        assert node.driver.replicas[1].machine is not with_failure
    assert len(node.disk.aside) == (3 if isinstance(failure, DataCorrupted) else 0)


def test_a_halted_control_replica_is_opened_anew_and_the_state_stays_known(cluster):
    cluster.create()
    cluster.settle()
    node = cluster.nodes["n1"]
    replica = node.driver.replicas[0]
    replica.state, replica.error = "halted", "StorageError: refused"
    seen = []
    while node.driver.replicas.get(0) is replica:
        cluster.world.run(0.05)
        seen.append(list(node.control.state.collections))
    cluster.settle()
    cluster.check()
    assert seen
    assert all(one == ["a"] for one in seen)


def test_a_replica_that_a_read_found_damaged_is_made_good_although_nobody_writes(cluster):
    cluster.create()
    cluster.settle()
    node = cluster.nodes["n2"]
    before = node.driver.replicas[1]
    before.machine.failure = DataCorrupted("met by a read", path="rows")
    cluster.settle()
    cluster.world.run(3)
    cluster.settle()
    cluster.check()
    assert node.driver.replicas[1] is not before
    assert len(node.disk.aside) == 1


class RefusesForGood:
    """A store as it is once it has refused: until it is opened anew."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)

    def sync(self):
        raise StorageError("refused before")


def test_a_control_store_that_refuses_the_reconciler_is_opened_anew(cluster):
    node = cluster.nodes["n2"]
    node.control._replica._store = RefusesForGood(node.disk.control)
    cluster.create()
    cluster.settle()
    cluster.check()
    assert {"collection": "", "error": "StorageError: refused before"}.items() <= next(
        fields for _, event, fields in node.told if event == "hosting_failed").items()


def test_a_ledger_that_refuses_ends_the_logs_beside_it(cluster):
    node = cluster.nodes["n2"]
    node.disk.ledger.failing = True
    cluster.create()
    cluster.world.run(2)
    assert isinstance(node.driver.failure, StorageError)
    assert not node.disk.rows
    node.disk.ledger.failing = False
    cluster.kill("n2")
    cluster.start("n2")
    cluster.settle()
    cluster.check()


def test_who_was_removed_begins_afresh(cluster):
    """A disk comes back that another had replaced."""
    cluster.create()
    cluster.settle()
    node = cluster.nodes["n1"]
    cluster.kill("n1")
    old, node.disk = node.disk, Disk()
    cluster.start("n1")
    cluster.settle()
    cluster.kill("n1")
    node.disk = old
    cluster.start("n1")
    cluster.world.run(3)
    cluster.settle()
    cluster.world.run(1)
    cluster.check()


def test_the_only_replica_is_opened_with_what_is_left_and_never_set_aside():
    cluster = Cluster(nodes=("n1",))
    cluster.start()
    cluster.settle()
    cluster.create()
    cluster.settle()
    node = cluster.nodes["n1"]
    cluster.kill()
    node.disk.rows["a"].damaged = True
    cluster.start()
    cluster.settle()
    cluster.check()
    assert not node.disk.aside
    cluster.end()


def test_a_folder_that_no_control_state_explains_is_left_alone(cluster):
    cluster.create("b")
    cluster.settle()
    node = cluster.nodes["n1"]
    cluster.kill("n1")
    row = node.disk.rows["b"]
    for name, folder in (("late", "g00000099"), ("odd", "000001")):
        node.disk.rows[name] = type(row)(type(row.entry)(schema(name), folder))
    cluster.start("n1")
    cluster.world.run(20)
    assert {"late", "odd", "b"} == set(node.disk.rows)
    assert not node.settled
    assert node.hosting.replicator("b")
    told = [fields["collection"] for _, event, fields in node.told if event == "hosting_failed"]
    assert sorted(told) == ["late", "odd"]


# --- trouble --------------------------------------------------------------------------------------


def test_failures_are_told_once_and_tried_again_after_growing_pauses(cluster):
    node = cluster.nodes["n1"]
    tries = []

    def refuse(schema, folder):
        tries.append(cluster.world.now)
        raise StorageError("no room")

    local = node.hosting._database
    local.host, host = refuse, local.host
    cluster.create("a")
    other = cluster.create("b")
    cluster.world.run(60)
    told = [fields for _, event, fields in node.told if event == "hosting_failed"]
    assert sorted(one["collection"] for one in told) == ["a", "b"]
    mine = tries[::2]
    gaps = [late - early for early, late in pairwise(mine)]
    assert len(gaps) < 45
    assert max(gaps) > 1.5
    with pytest.raises(Unavailable) as refused:
        node.hosting.replicator("a")
    assert "no room" in refused.value.fields["why"]
    assert "no room" in node.hosting.statuses()["b"].error
    local.host = host
    cluster.settle()
    cluster.check()
    assert [event for _, event, _ in node.told].count("hosting_well_again") == 2
    assert other.group == 2


def test_one_that_fails_holds_up_no_other(cluster):
    node = cluster.nodes["n1"]
    local = node.hosting._database
    replica = local.replica

    def refuse(name, *, allow_damage=False):
        if name == "bad":
            raise ValueError("a mistake of ours")
        return replica(name)

    local.replica = refuse
    cluster.create("bad")
    cluster.create("good")
    cluster.world.run(5)
    assert node.hosting.replicator("good")
    with pytest.raises(Unavailable):
        node.hosting.replicator("bad")


def test_a_disk_of_logs_that_fails_is_told_once_and_nothing_is_done(cluster):
    node = cluster.nodes["n1"]
    node.driver.failure = OSError("gone")
    cluster.create()
    cluster.world.run(10)
    assert not node.disk.rows
    assert [event for _, event, _ in node.told].count("hosting_stuck") == 1


def test_a_damaged_ledger_is_a_new_disk(cluster):
    cluster.create()
    cluster.settle()
    node = cluster.nodes["n1"]
    cluster.kill("n1")
    assert node.disk.ledger.flip(cluster.world.random, b"hf", b"hg")
    cluster.start("n1")
    cluster.settle()
    cluster.check()
    assert "ledger_damaged" in [event for _, event, _ in node.told]
    assert node.hosting.founding.joined


