"""Writes of any kind, whole and in parts, over any number of splits and merges, held against a shard of its own: each
is told what it did, as often as it comes, and the records are those that it has.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests.replicas import DIM, replica_at
from tests.unit.shard.test_imports import LAST, _apply, _Copy
from vecdb.cluster.merge import counting, merge_writes
from vecdb.cluster.routing import Ring, metadata_hash, split
from vecdb.core.calls import WriteToken
from vecdb.core.filters import parse
from vecdb.core.records import Command, DeleteIds, DeleteWhere, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.ports.copies import CopyTarget
from vecdb.services.replica import ShardReplica
from vecdb.shard.digest import MODULUS

STEPS = 24
Done = list[tuple[int, int, int, WriteResult]]


@dataclass(frozen=True)
class Shard:
    group: int
    lo: int
    hi: int
    replica: ShardReplica


def digest(*shards: ShardReplica) -> int:
    return sum(int(one.digest().digest, 16) for one in shards) % MODULUS


@dataclass
class Run:
    random: Random
    stack: ExitStack
    place: Path
    shard_key: str | None
    made: int = 0
    ring: list[Shard] = field(default_factory=list)
    told: list[tuple[Command, WriteToken, WriteResult]] = field(default_factory=list)

    def begin(self) -> None:
        self.alone = self.shard(0, 0).replica
        third = (LAST + 1) // 3
        self.ring = [self.shard(0, third), self.shard(third, 2 * third), self.shard(2 * third, LAST + 1)]

    def shard(self, lo: int, hi: int) -> Shard:
        self.made += 1
        return Shard(self.made, lo, hi, self.stack.enter_context(replica_at(self.place / f"s{self.made}")))

    def command(self) -> Command:
        random = self.random
        ids, kind = tuple(random.sample(range(60), random.randrange(1, 14))), random.random()
        bodies = tuple(b'{"t":%d,"n":%d}' % (one % 7, random.randrange(5)) for one in ids)
        if kind < 0.4:
            return UpsertBatch(ids, np.full((len(ids), DIM), random.random(), np.float32), bodies)
        if kind < 0.6:
            return DeleteIds(ids)
        if kind < 0.7:
            return DeleteWhere(parse(random.choice(["n == 1", "n > 3", "t == 3", "t < 2 and n < 2"])))
        if kind < 0.85:
            return UpdateMetadata(ids, bodies, merge=False)
        return UpdateMetadata(ids, (b'{"n":9}',) * len(ids))

    def send(self, command: Command, token: WriteToken | None, chance: float = 1.0) -> tuple[Done, list[Command]]:
        """What the shards did, and the parts that some refused."""
        done: Done = []
        left: list[Command] = []
        for part in split(Ring(self.ring), command, self.shard_key):
            if self.random.random() >= chance:
                left.append(part.command)
                continue
            result = _apply(part.shard.replica, part.command, token)
            assert isinstance(result, WriteResult)
            done.append((part.shard.group, part.shard.lo, part.shard.hi, replace(result, shard=part.shard.group)))
        return done, left

    def total(self, command: Command, done: Done) -> WriteResult:
        results = counting(done, command, self.shard_key)
        return merge_writes(results, command, self.shard_key is not None) if results else WriteResult()

    def write(self, *, over: bool) -> None:
        """``over``: some parts come before a split or merge, the others after it, all of which its key goes with."""
        command, random = self.command(), self.random
        key = b"k%d" % random.getrandbits(40)
        token = None if not over and random.random() < 0.1 else WriteToken(key, random.getrandbits(60))
        expected = _apply(self.alone, command)
        assert isinstance(expected, WriteResult)
        done, left = self.send(command, token, 0.5 if over else 1.0)
        if over:
            self.reshard(writes=False)
            for part in left:
                done += self.send(part, token)[0]
        told = self.total(command, done)
        assert told.counts == expected.counts, (command, done)
        if token is not None:
            self.told.append((command, token, told))

    def repeat(self) -> None:
        if self.told:
            command, token, told = self.random.choice(self.told)
            done, _ = self.send(command, token)
            assert self.total(command, done).counts == told.counts, (command, done)

    def reshard(self, *, writes: bool) -> None:
        """Two neighbours become one, or one two; ``writes``: while it is copied."""
        many = 2 if len(self.ring) > 1 and self.random.random() < 0.5 else 1
        at = self.random.randrange(len(self.ring) - many + 1)
        old, lo, hi = self.ring[at:at + many], self.ring[at].lo, self.ring[at + many - 1].hi
        edges = [lo, hi] if many > 1 else [lo, (lo + hi) // 2, hi]
        new = [self.shard(*edge) for edge in pairwise(edges)]
        copies = [_Copy(one.group, one.replica, one.lo, one.hi, *(
            (CopyTarget(to.group, max(to.lo, one.lo), min(to.hi, one.hi), ()), to.replica) for to in new),
            shard_key=self.shard_key or "") for one in old]
        if writes:
            self.write(over=False)
        self.repeat()
        for copy in copies:
            copy.end()
        assert digest(*(one.replica for one in old)) == digest(*(one.replica for one in new))
        self.ring[at:at + many] = new


@pytest.mark.parametrize(("seed", "shard_key"), [(3, "t"), (11, "t"), (2, None)])
def test_writes_over_splits_and_merges_are_told_what_they_did(tmp_path: Path, seed: int, shard_key: str | None) -> None:
    with ExitStack() as stack:
        run = Run(Random(seed), stack, tmp_path, shard_key)
        run.begin()
        for _ in range(STEPS):
            kind = run.random.random()
            if kind < 0.55:
                run.write(over=kind < 0.2)
            elif kind < 0.75:
                run.repeat()
            else:
                run.reshard(writes=run.random.random() < 0.7)
            assert digest(*(one.replica for one in run.ring)) == digest(run.alone)


def test_a_shard_is_split_while_records_get_another_value_of_the_shard_key(tmp_path: Path) -> None:
    """One id has one record in a shard, whatever its value; of its heirs one has it then, and the others have none."""
    half = (LAST + 1) // 2
    bodies = [b'{"t":%d}' % one for one in range(40)]
    lows, highs = ([one for one in bodies if (metadata_hash(one, "t") or 0) // half == upper] for upper in (0, 1))

    def batch(ids: tuple[int, ...], *metadata: bytes) -> UpsertBatch:
        vectors = np.arange(len(ids) * DIM, dtype=np.float32).reshape(len(ids), DIM)
        return UpsertBatch(ids, vectors, metadata * len(ids) if len(metadata) == 1 else metadata)

    steps: list[Command] = [
        batch((0, 1), highs[0]), batch((2, 3, 30), highs[1], lows[2], highs[2]),
        UpdateMetadata((4, 5, 99), (highs[0],) * 3, merge=False), UpdateMetadata((5,), (lows[1],), merge=False),
        UpdateMetadata((6, 12), (highs[1], lows[2]), merge=False), UpdateMetadata((4,), (b'{"n":1}',)),
        DeleteIds((1,)), batch((1,), lows[2])]
    with ExitStack() as stack:
        source, low, high = (stack.enter_context(replica_at(tmp_path / name)) for name in "abc")
        _apply(source, batch(tuple(range(10)), lows[0]))
        _apply(source, batch(tuple(range(10, 20)), highs[0]))
        heirs = (CopyTarget(2, 0, half, ()), low), (CopyTarget(3, half, LAST + 1, ()), high)
        copy = _Copy(1, source, 0, LAST + 1, *heirs, shard_key="t")
        for number, step in enumerate(steps):
            assert isinstance(_apply(source, step, WriteToken(b"%d" % number) if number % 2 else None), WriteResult)
        copy.end()
        assert digest(low, high) == digest(source)
        assert [one.digest().records for one in (source, low, high)] == [21, 7, 14]
