"""Following a shard: the records of a moment, and every change after it, while it goes on."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests.replicas import DIM, SCHEMA, open_replicas, random_command, replica_at, upsert
from vecdb.core.calls import WriteToken
from vecdb.core.errors import DatabaseClosed, Overloaded
from vecdb.core.records import DeleteIds, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema, Metric
from vecdb.services.following import Follow, FollowLimits, Told
from vecdb.services.replica import ShardReplica
from vecdb.shard import codec
from vecdb.shard.imports import Remembered
from vecdb.shard.marks import Mark
from vecdb.shard.seal import Seal


def _apply(replica: ShardReplica, data: bytes) -> object:
    return replica.apply(replica.position().log_index + 1, 1, data)


@contextmanager
def _followed(replica: ShardReplica, limits: FollowLimits | None = None) -> Iterator[Follow]:
    follow = replica.follow(limits)
    try:
        yield follow
    finally:
        follow.close()


def _everything(follow: Follow, most_bytes: int = 1 << 20) -> tuple[list[Told], int]:
    found: list[Told] = []
    while True:
        taken = follow.take(most_bytes)
        found += taken.changes
        if not taken.changes:
            return found, taken.upto


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limits", [FollowLimits(), FollowLimits(0, 1 << 24), FollowLimits(2_000, 1 << 24)])
def test_the_moment_and_what_came_after_it_make_the_same_shard(tmp_path: Path, seed: int, limits: FollowLimits) -> None:
    rng = Random(seed)
    schema = CollectionSchema("c", DIM, rng.choice((Metric.L2, Metric.COSINE, Metric.DOT)))
    database = open_replicas(tmp_path / "a", seal_records=40)
    database.host(schema, "g00000001")
    source = database.replica("c")
    with replica_at(tmp_path / "b", schema) as copy:
        for _ in range(60):
            _apply(source, codec.encode(*random_command(rng)))
            if rng.random() < 0.2:
                database.tend("c")
        began = source.digest()
        with _followed(source, limits) as follow:
            chunks = follow.chunks(rng.choice((100, 2_000, 1 << 20)))
            seen: list[UpsertBatch] = []
            changes: list[Told] = []
            for _ in range(80):
                if rng.random() < 0.3 and (chunk := next(chunks, None)) is not None:
                    seen.append(chunk)
                if rng.random() < 0.2:
                    changes += follow.take(rng.choice((1, 500, 1 << 20))).changes
                _apply(source, codec.encode(*random_command(rng)))
                if rng.random() < 0.3:
                    database.tend("c")
            seen += chunks
            rest, upto = _everything(follow, 700)
            changes += rest
        assert (follow.log_index, follow.records) == (began.log_index, began.records) == (60, sum(
            len(one.ids) for one in seen))
        assert upto == source.position().log_index
        for chunk in seen:
            _apply(copy, codec.encode(chunk))
        assert copy.digest().digest == began.digest, "records of the moment, bit by bit"
        places = [one.log_index for one in changes]
        assert places == sorted(set(places))
        assert all(place > began.log_index for place in places)
        for one in changes:
            (command,) = one.commands
            assert (one.write is None) is (codec.decode(command)[1] is None)
            done = _apply(copy, command)
            assert isinstance(done, WriteResult)
            assert one.write is None or one.write.counts == done.counts
        assert (copy.digest().digest, copy.digest().records) == (source.digest().digest, source.digest().records)
    database.close()


def test_unit_vectors_arrive_as_they_are_stored(tmp_path: Path) -> None:
    schema = CollectionSchema("c", DIM, Metric.COSINE)
    stored = np.full((1, DIM), 0.3535, np.float32)  # not what normalising it once more would give
    again = stored / np.linalg.norm(stored.astype(np.float64))
    assert not np.array_equal(stored, again.astype(np.float32))
    with replica_at(tmp_path / "a", schema) as replica:
        _apply(replica, codec.encode(UpsertBatch((1,), stored, (b"{}",))))
        with _followed(replica) as follow:
            (chunk,) = follow.chunks(1 << 20)
            assert chunk.vectors.tobytes() == stored.tobytes()


def test_what_did_nothing_is_not_told_but_its_place_is(tmp_path: Path) -> None:
    with replica_at(tmp_path / "a") as replica, _followed(replica) as follow:
        _apply(replica, codec.encode(DeleteIds((1,))))
        _apply(replica, codec.encode(Mark()))
        _apply(replica, b"nonsense")
        assert follow.take(1) == follow.take(1)
        assert (follow.take(1).changes, follow.take(1).upto) == ((), 3)
        keyed = codec.encode(DeleteIds((1,)), WriteToken(b"k"))
        _apply(replica, keyed)
        _apply(replica, keyed)
        _apply(replica, codec.encode(Seal(1, 1)))
        _apply(replica, codec.encode(upsert(Random(1), 3, 9)))
        taken = follow.take(1 << 20)
        write = Remembered(b"k", 0, (0, 0, 0, 1))
        assert (taken.changes, taken.upto) == ((Told(4, (keyed,), write),), 7), "its key will be remembered"


def test_the_keys_of_the_moment_are_told(tmp_path: Path) -> None:
    with replica_at(tmp_path / "a") as replica:
        for number in range(5):
            _apply(replica, codec.encode(DeleteIds((number,)), WriteToken(b"k%d" % number, number)))
        with _followed(replica) as follow:
            _apply(replica, codec.encode(DeleteIds((9,)), WriteToken(b"late")))
            (memory,) = follow.memories(4, 10, 20)
            assert memory.origin == 4
            assert memory.writes == tuple(Remembered(b"k%d" % number, number, (0, 0, 0, 1), 10, 19)
                                          for number in range(5))


def test_too_much_waiting_ends_the_following_and_never_the_shard(tmp_path: Path) -> None:
    with replica_at(tmp_path / "a") as replica:
        with _followed(replica, FollowLimits(500, 3_000)) as follow:
            command = codec.encode(upsert(Random(1), 10, 99))
            for _ in range(20):
                _apply(replica, command)
            with pytest.raises(Overloaded):
                follow.take(1)
            assert replica.position().log_index == 20
        assert follow.waiting_bytes == 0


def test_small_changes_take_no_more_memory_than_they_count_for(tmp_path: Path) -> None:
    with replica_at(tmp_path / "a") as replica, _followed(replica, FollowLimits(1 << 20, 1 << 24)) as follow:
        token = WriteToken(b"some-key-of-24-bytes-000", 1 << 62)
        tracemalloc.start()
        try:
            for at in range(10_000):
                write = Remembered(token.key[:-4] + b"%04d" % at, token.fingerprint + at, (0, 0, 1, at), at << 50,
                                   (1 << 64) - 1 - at)
                follow.applied(1_000_000 + at, Told(1_000_000 + at, (b"%040d" % at,), write))
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 1.2 * (1 << 20)
        assert [one.log_index for one in _everything(follow)[0]] == [*range(1_000_000, 1_010_000)]


def test_a_shard_that_closes_ends_its_followers(tmp_path: Path) -> None:
    with replica_at(tmp_path / "a") as replica:
        _apply(replica, codec.encode(upsert(Random(1), 10, 99)))
        follow = replica.follow()
        rest = replica.follow()
        rest.close()
    with pytest.raises(DatabaseClosed):
        follow.take(1)
    with pytest.raises(DatabaseClosed):
        rest.take(1)
    follow.close()
    assert not list(tmp_path.rglob("tmp*")), "files of commands are seen by nobody else"


def test_a_file_of_commands_is_given_back_once_it_is_empty(tmp_path: Path) -> None:
    with replica_at(tmp_path / "a", SCHEMA) as replica, _followed(replica, FollowLimits(0, 4_000)) as follow:
        command = codec.encode(upsert(Random(1), 10, 99))
        for _ in range(30):  # many times the bound in all
            _apply(replica, command)
            assert [one.commands for one in _everything(follow)[0]] == [(command,)]
        assert follow.waiting_bytes == 0
