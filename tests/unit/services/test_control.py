"""The control group on a node: its state machine over a store, and collections made and dropped through it."""

import asyncio
from random import Random

import pytest

from vecdb.cluster.control import ControlState, create, drop
from vecdb.core.calls import Call, WriteToken
from vecdb.core.errors import (
    CollectionExists,
    CollectionNotFound,
    DataCorrupted,
    InvalidArgument,
    NotLeader,
    OutcomeUnknown,
    StorageError,
    Unavailable,
)
from vecdb.core.schema import CollectionSchema
from vecdb.ports.replicator import Position, ReplicaStatus, SnapshotFile
from vecdb.services.control import Control, ControlReplica, members, pack, unpack
from vecdb.storage.rocksdict import RocksStore
from vecdb.testing.disk import MemoryStore
from vecdb.testing.replicator import Chances, LoopGroup

NODES = ("n1/11", "n2/22", "n3/33")


def schema(name="a", dim=4):
    return CollectionSchema(name, dim)


def commands(count):
    """Collections made, and every third dropped again."""
    for at in range(count):
        yield create(schema(f"c{at}"), NODES, b"key%d" % at)
        if at % 3 == 0:
            yield drop(f"c{at}", b"drop%d" % at)


def filled(store, count=9):
    replica = ControlReplica(store)
    for at, command in enumerate(commands(count)):
        replica.apply(at + 2, 1, command)
    return replica


# --- the state machine ----------------------------------------------------------------------------


def test_state_and_position_are_there_after_a_crash_or_neither():
    history = [create(schema("first"), NODES), *commands(20)]
    for seed in range(40):
        random, store = Random(seed), MemoryStore()
        replica, states = ControlReplica(store), [ControlState()]
        for at, command in enumerate(history):
            if at == random.randrange(len(history)):
                replica.checkpoint()
            replica.apply(at + 1, 3, command)
            states.append(replica.state)
        store.crash(random)
        again = ControlReplica(store)
        found = again.position().log_index
        assert again.state == states[found]
        for at in range(found, len(history)):
            again.apply(at + 1, 3, history[at])
        assert again.state == states[-1]


def test_what_was_applied_is_not_applied_again():
    replica = filled(MemoryStore())
    before = replica.state
    assert replica.apply(before.log_index, 1, create(schema("again"), NODES)) is None
    assert replica.apply(1, 1, drop("c1")) is None
    assert replica.state is before


def test_a_checkpoint_says_how_far_it_is_durable():
    store = MemoryStore()
    replica = filled(store)
    position = replica.checkpoint()
    assert position == replica.position()
    store.crash(Random(1))
    assert ControlReplica(store).position() == position


def test_a_disk_that_refuses_changes_nothing():
    store = MemoryStore()
    replica = filled(store)
    before = replica.state
    store.failing = True
    for act in (lambda: replica.apply(99, 1, drop("c1")), replica.checkpoint, replica.snapshot):
        with pytest.raises(StorageError):
            act()
    assert replica.state is before
    store.failing = False
    assert replica.apply(99, 1, drop("c1")).name == "c1"


def test_damage_is_said_at_opening():
    found = 0
    for seed in range(30):
        store = MemoryStore()
        filled(store).checkpoint()
        assert store.flip(Random(seed), b"", b"\xff") is not None
        with pytest.raises(DataCorrupted):
            ControlReplica(store)
        found += 1
    assert found == 30


def send(snapshot, incoming, piece=100):
    while (have := incoming.have(0)) < snapshot.files[0].bytes:
        incoming.write(0, have, snapshot.read(0, have, piece))


def test_a_snapshot_stays_as_it_was_and_becomes_the_state_elsewhere():
    source = filled(MemoryStore(), 30)
    snapshot, then = source.snapshot(), source.state
    source.apply(500, 2, drop("c1"))
    store, seen = MemoryStore(), []
    target = ControlReplica(store, seen.append)
    target.apply(1, 1, create(schema("to_be_forgotten"), NODES, b"stale"))
    incoming = target.receive(snapshot.position, snapshot.files)
    incoming.write(0, 0, snapshot.read(0, 0, 10))
    incoming.close()
    incoming = target.receive(snapshot.position, snapshot.files)
    assert incoming.have(0) == 10
    with pytest.raises(InvalidArgument):
        incoming.write(0, 9, b"x")
    send(snapshot, incoming)
    with pytest.raises(InvalidArgument):
        incoming.write(0, incoming.have(0), b"beyond")
    incoming.install()
    incoming.close()
    snapshot.release()
    assert target.state == then == seen[-1]
    assert target.digest() == (then.log_index, then.term, 20, f"{then.digest:016x}")
    store.crash(Random(0))
    assert ControlReplica(store).state == then
    assert target.apply(500, 2, drop("c1")) is not None
    assert target.state == source.state


def test_a_snapshot_that_came_damaged_is_refused_and_asked_for_anew():
    source = filled(MemoryStore())
    snapshot = source.snapshot()
    target = filled(MemoryStore(), 2)
    before = target.state
    incoming = target.receive(snapshot.position, snapshot.files)
    data = bytearray(snapshot.read(0, 0, 1 << 20))
    data[len(data) // 2] ^= 4
    incoming.write(0, 0, bytes(data))
    with pytest.raises(DataCorrupted):
        incoming.install()
    assert incoming.have(0) == 0
    send(snapshot, incoming)
    elsewhere = target.receive(Position(77, 7), snapshot.files)
    with pytest.raises(DataCorrupted, match="place"):
        elsewhere.install()
    assert target.state is before
    incoming.install()
    assert target.state == source.state
    with pytest.raises(DataCorrupted):
        target.receive(Position(77, 7), [SnapshotFile("rows", 1, 1)])


def test_pieces_of_other_snapshots_are_forgotten():
    source = filled(MemoryStore())
    first = source.snapshot()
    source.apply(900, 1, drop("c1"))
    second = source.snapshot()
    target = ControlReplica(MemoryStore())
    target.receive(first.position, first.files).write(0, 0, b"x" * 50)
    assert target.receive(second.position, second.files).have(0) == 0
    assert target.receive(first.position, first.files).have(0) == 0


def test_bytes_that_are_no_snapshot_are_damage():
    state = filled(MemoryStore()).state
    data = pack(state)
    assert unpack(data) == state
    assert unpack(b"") == ControlState()
    for bad in (data[:-1], data[:5], data + b"\x00", data[8:], b"\xff" * 40):
        with pytest.raises(DataCorrupted):
            unpack(bad)


def test_killed_while_installing_it_is_the_old_state_or_the_new():
    source = filled(MemoryStore(), 30)
    snapshot = source.snapshot()
    outcomes = set()
    for seed in range(20):
        store = MemoryStore()
        target = filled(store, 2)
        target.checkpoint()
        before = target.state
        incoming = target.receive(snapshot.position, snapshot.files)
        send(snapshot, incoming, 1 << 20)
        sync, store.sync = store.sync, lambda: (_ for _ in ()).throw(StorageError("the power goes"))
        with pytest.raises(StorageError):
            incoming.install()
        store.sync = sync
        store.crash(Random(seed))
        state = ControlReplica(store).state
        assert state in (before, source.state)
        outcomes.add(state.log_index)
    assert len(outcomes) == 2


# --- what a node asks -----------------------------------------------------------------------------


class Nodes:
    """Three nodes whose control replicas share a log without Raft."""

    def __init__(self, tmp_path, **kwargs):
        self.controls = {name: Control(tmp_path / name.replace("/", "-"), lambda path: MemoryStore(),
                                       replication_factor=kwargs.pop("factor", 3)) for name in NODES}
        self.group = LoopGroup({name: control.open() for name, control in self.controls.items()}, **kwargs)
        for name, control in self.controls.items():
            control.replicator = self.group.replicators[name]

    @property
    def leader(self):
        return self.controls[self.group.leader]

    @property
    def follower(self):
        return next(control for name, control in self.controls.items() if name != self.group.leader)


def test_collections_are_made_and_dropped_for_everybody(tmp_path):
    async def story():
        nodes = Nodes(tmp_path)
        seen = []
        nodes.follower.on_change(seen.append)
        entry = await nodes.leader.create(schema("docs"))
        assert (entry.shards, entry.replication_factor, entry.shard_key) == ((1,), 3, None)
        shard = nodes.leader.state.only("docs")
        assert (shard.group, shard.label, shard.lo, shard.hi) == (1, "docs", 0, 1 << 64)
        assert (shard.replicas, shard.nodes) == (NODES, ("n1", "n2", "n3"))
        assert all(control.state.get("docs") == entry for control in nodes.controls.values())
        assert all(control.state.of("docs") == [shard] for control in nodes.controls.values())
        with pytest.raises(CollectionExists):
            await nodes.leader.create(schema("docs", 9))
        assert await nodes.leader.drop("docs") == entry
        with pytest.raises(CollectionNotFound):
            await nodes.leader.drop("docs")
        assert (await nodes.leader.create(schema("docs"))).shards == (2,)
        assert [sorted(state.collections) for state in seen] == [["docs"], [], ["docs"]]
        assert (await nodes.leader.catch_up(None)).next_group == 3

    asyncio.run(story())


def test_who_does_not_lead_says_who_does(tmp_path):
    async def story():
        nodes = Nodes(tmp_path)
        for ask in (nodes.follower.create(schema()), nodes.follower.drop("a"), nodes.follower.catch_up(None)):
            with pytest.raises(NotLeader) as refused:
                await ask
            assert refused.value.leader == nodes.group.leader
        nodes.leader.replicator, nodes.group.leader = None, "n1/11"
        with pytest.raises(Unavailable):
            await nodes.leader.create(schema())
        assert nodes.leader.status() is None

    asyncio.run(story())


@pytest.mark.parametrize("seed", range(8))
def test_retries_with_a_key_happen_once_whatever_is_lost(tmp_path, seed):
    async def story():
        nodes = Nodes(tmp_path, seed=seed, chances=Chances(deposed=0.2, overloaded=0.1, lost=0.2, unheard=0.3))

        async def insist(ask):
            while True:
                try:
                    return await ask()
                except (NotLeader, OutcomeUnknown, Unavailable):
                    pass
                except Exception as error:
                    if type(error).__name__ != "Overloaded":
                        raise

        for at in range(25):
            made = Call(token=WriteToken(b"make%d" % at))
            gone = Call(token=WriteToken(b"drop%d" % at))
            entry = await insist(lambda made=made: nodes.leader.create(schema("a"), made))
            assert entry.shards == (at + 1,)
            assert await insist(lambda gone=gone: nodes.leader.drop("a", gone)) == entry
        assert len({control.digest() for control in nodes.group.machines.values()}) == 1
        assert nodes.leader.state.epoch == 50

    asyncio.run(story())


def test_replicas_go_to_nodes_that_are_heard_and_hold_little(tmp_path):
    class Leader:
        def __init__(self, heard):
            self.heard = heard

        def status(self):
            voters = tuple(f"n{at}/{at}" for at in range(1, 6))
            return ReplicaStatus("n1/1", "ok", "leader", 1, "n1/1", 1, 1, 1, 1, 0, voters, ("n6/6",), ("n7/7",), {},
                                 self.heard)

    async def story():
        control = Control(tmp_path / "c", lambda path: MemoryStore(), replication_factor=3)
        control.open()
        control.replicator = Leader({"n2/2": 0.1, "n3/3": 50.0, "n4/4": 11.0, "n5/5": 0.0, "n6/6": 99.0, "n7/7": 12.0})
        (_, _, chosen), = await control._place(control._candidates(control.status()), 1, 3)
        assert set(chosen) == {"n1", "n2", "n5"}
        assert members(control.status())["n3"] == ("n3/3", False)
        control.replicator = Leader({})
        (_, _, chosen), = await control._place(control._candidates(control.status()), 1, 3)
        assert len(set(chosen)) == 3

    asyncio.run(story())


def test_the_state_lasts_and_damage_is_set_aside(tmp_path):
    def open_store(path, *, read_only=False):
        return RocksStore(path, read_only=read_only)

    control = Control(tmp_path / "control", open_store, replication_factor=1)
    assert control.state == ControlState()
    replica = control.open()
    replica.apply(2, 1, create(schema(), NODES))
    replica.checkpoint()
    replica = control.open()
    assert list(replica.state.collections) == ["a"]
    control.close()
    tables = list((tmp_path / "control").glob("*.sst"))
    assert tables
    for path in tables:
        path.write_bytes(path.read_bytes()[:20] + b"\xff\xff\xff" + path.read_bytes()[23:])
    with pytest.raises(DataCorrupted):
        control.open()
    assert control.set_aside() == tmp_path / "control.damaged-1"
    assert control.open().state == ControlState()
    assert list(control.state.collections) == ["a"]  # what was known stays known
    assert control.open_state == ControlState()
    for number in (2, 3):
        assert control.set_aside() == tmp_path / f"control.damaged-{number}"
        control.open()
    control.close()
    assert sorted(path.name for path in tmp_path.glob("*.damaged-*")) == ["control.damaged-2", "control.damaged-3"]
    assert control.set_aside() is not None
    assert control.set_aside() is None
