"""Rows and commands as the release wrote them that knew only collections of one shard."""

import json
from pathlib import Path

import pytest

from vecdb.cluster.control import ControlState, apply, create, create_shards, drop, from_rows, read_rows, rows_of
from vecdb.core.cluster import HASH_SPACE
from vecdb.core.errors import CollectionNotFound, DataCorrupted, Unsupported
from vecdb.core.schema import CollectionSchema
from vecdb.services.control import ControlReplica, pack, unpack
from vecdb.shard.mutations import Mutations
from vecdb.testing.disk import MemoryStore

OLD = json.loads(Path(__file__).with_name("control_version_1.json").read_text())
ROWS = [(bytes.fromhex(key), bytes.fromhex(value)) for key, value in OLD["rows"]]
COMMANDS = [bytes.fromhex(command) for command in OLD["commands"]]
REPLICAS = ("n1/11", "n2/22", "n3/33")


def replayed():
    state = ControlState()
    for at, command in enumerate(COMMANDS):
        state = apply(state, at + 1, 1, command).state
    return state


def test_rows_and_commands_say_the_same():
    state, is_current = read_rows(ROWS)
    assert not is_current
    assert state == replayed()
    assert from_rows(rows_of(state)) == state
    assert read_rows(rows_of(state))[1]
    shard = state.only("a")
    assert (shard.group, shard.label, shard.lo, shard.hi, shard.replicas) == (3, "a", 0, HASH_SPACE, REPLICAS[:2])
    assert (shard.desired, shard.local_schema.dim, state.get("a").replication_factor) == (("n1", "n2"), 8, 2)
    assert apply(state, 9, 1, COMMANDS[0]).outcome.shards == (1,)  # what was remembered under a key
    assert isinstance(apply(state, 9, 1, COMMANDS[3]).outcome, CollectionNotFound)


def test_commands_that_the_old_ones_can_read_are_written_for_them():
    """While nodes of both are there."""
    assert create(CollectionSchema("a", 4), REPLICAS, b"k1") == COMMANDS[0]
    assert create_shards(CollectionSchema("a", 4), [(0, HASH_SPACE, REPLICAS)], 3, key=b"k1") == COMMANDS[0]
    assert drop("a", b"k2") == COMMANDS[2]
    assert create_shards(CollectionSchema("a", 4), [(0, HASH_SPACE, REPLICAS)], 2)[1] == 2


def test_a_store_of_it_is_rewritten_and_goes_on():
    store = MemoryStore()
    store.write(Mutations(puts=ROWS))
    replica = ControlReplica(store)
    assert replica.state == replayed()
    assert list(store.scan(b"", b"\xff")) == rows_of(replica.state)
    replica.apply(9, 2, drop("b"))
    assert ControlReplica(store).state == replica.state == apply(replayed(), 9, 2, drop("b")).state
    assert unpack(pack(replica.state)) == replica.state


@pytest.mark.parametrize("damage", ["mixed", "lost", "flipped"])
def test_damage_is_found_in_it_too(damage):
    rows = list(ROWS)
    if damage == "mixed":
        rows[1] = next(row for row in rows_of(replayed()) if row[0] == rows[1][0])
    elif damage == "lost":
        del rows[2]
    else:
        rows[0] = (rows[0][0], rows[0][1][:-2] + b"?}")
    with pytest.raises(DataCorrupted):
        from_rows(rows)


def test_a_collection_of_several_shards_is_none_of_one():
    state = apply(ControlState(), 1, 1, create_shards(
        CollectionSchema("a", 4), [(0, 1 << 63, REPLICAS), (1 << 63, HASH_SPACE, REPLICAS[:1])], 3, "tenant")).state
    with pytest.raises(Unsupported):
        state.only("a")
    first, second = state.of("a")
    assert [first.label, second.label, second.local_schema.name] == ["a@1", "a@2", "a@2"]
    assert (first.name, second.desired, state.get("a").shard_key) == ("a", ("n1",), "tenant")
    assert state.labelled("a@2") is second
    for label in ("a", "a@3", "b@1", "a@x"):
        with pytest.raises(CollectionNotFound):
            state.labelled(label)
    assert from_rows(rows_of(state)) == state
    assert state.loads() == {"n1": 2, "n2": 1, "n3": 1}
