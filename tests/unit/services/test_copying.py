"""Copying shards while they are written: what arrives is what was there, whatever is lost, late or asked twice."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests.replicas import DIM, random_command, replica_at
from vecdb.cluster.routing import hash_of_id, metadata_hash
from vecdb.core.calls import Call, WriteToken
from vecdb.core.cluster import HASH_SPACE
from vecdb.core.errors import CollectionNotFound, InvalidArgument, OutcomeUnknown, Unavailable, VecdbError
from vecdb.core.filters import parse
from vecdb.core.query import ScanRequest
from vecdb.core.records import Command, DeleteIds, DeleteWhere, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema, Metric
from vecdb.ports.copies import NEVER, CopyOrder, CopyStatus, CopyTarget
from vecdb.services import copying as copying_module
from vecdb.services.copying import Copying, Splitter
from vecdb.services.following import Follow, FollowLimits
from vecdb.services.replica import ShardReplica
from vecdb.shard import codec
from vecdb.shard.codec import LogCommand
from vecdb.shard.digest import MODULUS
from vecdb.shard.marks import Mark
from vecdb.shard.seal import Seal

NOW = Call()
MIDDLE = HASH_SPACE // 2


class Groups:
    """Shards by group, each a log of its own; proposals may be lost on their way there or back."""

    def __init__(self, replicas: dict[int, ShardReplica], random: Random, lost: float) -> None:
        self.replicas, self.random, self.lost = replicas, random, lost
        self.gone: set[int] = set()
        self.proposed = 0

    def apply(self, group: int, command: LogCommand | bytes, token: WriteToken | None = None) -> object:
        replica = self.replicas[group]
        data = command if isinstance(command, bytes) else codec.encode(command, token)
        return replica.apply(replica.position().log_index + 1, 1, data)

    async def propose(self, target: CopyTarget, command: bytes, seconds: float) -> object:
        await asyncio.sleep(0)
        self.proposed += 1
        if target.group in self.gone:
            raise CollectionNotFound("c")
        if self.random.random() < self.lost:
            raise self.random.choice((Unavailable, OutcomeUnknown))("lost")
        done = self.apply(target.group, command)
        if isinstance(done, VecdbError):
            raise done
        if self.random.random() < self.lost:
            raise OutcomeUnknown("unheard")
        return done


@contextmanager
def _shards(path: Path, groups: list[int], schema: CollectionSchema) -> Iterator[dict[int, ShardReplica]]:
    found: dict[int, ShardReplica] = {}
    with replica_at(path / str(groups[0]), schema, seal_records=60) as replica:
        found[groups[0]] = replica
        if groups[1:]:
            with _shards(path, groups[1:], schema) as rest:
                yield {**found, **rest}
        else:
            yield found


def _copying(groups: Groups) -> Copying:
    numbers = count(1)
    return Copying(lambda group: groups.replicas[group], groups.propose, draw=lambda: next(numbers))


async def _until(copying: Copying, job: int, source: int, log_index: int) -> CopyStatus:
    async with asyncio.timeout(60):
        while True:
            status = await copying.status(job, source, NOW)
            assert status is not None
            assert status.state != "failed", status.error
            if status.state == "following" and status.copied_to >= log_index:
                return status
            await asyncio.sleep(0.002)


def _digest(replicas: list[ShardReplica]) -> tuple[int, int]:
    found = [replica.digest() for replica in replicas]
    return sum(one.records for one in found), sum(int(one.digest, 16) for one in found) % MODULUS


def _ids(replica: ShardReplica) -> dict[int | str, dict[str, object]]:
    page = replica.service.scan(ScanRequest(limit=10_000, include_metadata=True))
    return dict(zip(page.ids, page.metadata or (), strict=True))


@pytest.mark.parametrize("seed", range(6))
def test_a_shard_is_split_while_it_is_written(tmp_path: Path, seed: int) -> None:
    rng = Random(seed)
    lo, hi = rng.choice(((0, HASH_SPACE), (0, MIDDLE)))
    cuts = sorted({rng.randrange(lo + 1, hi) for _ in range(rng.choice((1, 2)))})
    edges = [lo, *cuts, hi]
    targets = tuple(CopyTarget(at, begin, end, ("n1",)) for at, (begin, end) in
                    enumerate(pairwise(edges), 2))

    def command() -> tuple[Command | Mark, WriteToken | None]:
        """Of records that the source may have."""
        while True:
            found, token = random_command(rng)
            if isinstance(found, Mark | DeleteWhere):
                return found, token
            if all(lo <= hash_of_id(one) < hi for one in found.ids):
                return found, token
            if isinstance(found, DeleteIds):
                return DeleteIds(tuple(one for one in found.ids if lo <= hash_of_id(one) < hi)), token
            if isinstance(found, UpsertBatch) and found.vectors.shape[1] == DIM:
                keep = [at for at, one in enumerate(found.ids) if lo <= hash_of_id(one) < hi]
                return UpsertBatch(tuple(found.ids[at] for at in keep), found.vectors[keep],
                                   tuple(found.metadata[at] for at in keep)), token

    async def run(groups: Groups) -> None:
        copying = _copying(groups)
        for _ in range(80):
            groups.apply(1, *command())
        order = CopyOrder(1, 2, 1, lo, hi, targets)
        await copying.start(order, NOW)
        for _ in range(150):
            groups.apply(1, *command())
            if rng.random() < 0.3:
                await asyncio.sleep(0.002)
        groups.apply(1, Seal(1, 2))
        sealed = groups.replicas[1].position().log_index
        status = await _until(copying, 1, 1, sealed)
        assert (status.records, status.lag) == (status.total, 0)
        assert await copying.start(order, NOW) == status, "asked once more it is the same"
        await copying.close()

    schema = CollectionSchema("c", DIM, rng.choice((Metric.L2, Metric.COSINE)))
    with _shards(tmp_path, [1, *(one.group for one in targets)], schema) as replicas:
        asyncio.run(run(Groups(replicas, rng, 0.1)))
        filled = [replicas[one.group] for one in targets]
        assert _digest(filled) == _digest([replicas[1]])
        for target in targets:
            assert all(target.lo <= hash_of_id(one) < target.hi for one in _ids(replicas[target.group]))


@pytest.mark.parametrize("seed", range(4))
def test_two_shards_are_merged_and_retries_are_answered(tmp_path: Path, seed: int) -> None:
    """Each write is a call that its client made and was answered; all are made again after the switch."""
    rng = Random(seed)
    ring = {1: (0, MIDDLE), 2: (MIDDLE, HASH_SPACE)}
    splitters = {group: Splitter([CopyTarget(group, *of, ())], "") for group, of in ring.items()}
    told: list[tuple[Command, WriteToken, dict[int, WriteResult]]] = []

    def write(groups: Groups, number: int) -> None:
        found, _ = random_command(rng)
        if isinstance(found, Mark):
            return
        token, answers = WriteToken(b"k%d" % number, number), {}
        for group, splitter in splitters.items():
            if rng.random() < 0.2:
                continue  # this half is lost: the client does not know
            for share in splitter.shares(codec.encode(found, token)):
                done = groups.apply(group, codec.decode(share.command)[0], token)
                if isinstance(done, WriteResult):
                    answers[group] = done
        told.append((found, token, answers))

    async def run(groups: Groups) -> None:
        copying = _copying(groups)
        for number in range(60):
            write(groups, number)
        for source, (lo, hi) in ring.items():
            await copying.start(CopyOrder(1, 3, source, lo, hi, (CopyTarget(3, 0, HASH_SPACE, ("n1",)),)), NOW)
        for number in range(60, 120):
            write(groups, number)
            await asyncio.sleep(0.001)
        for source in ring:
            groups.apply(source, Seal(1, 3))
            await _until(copying, 1, source, groups.replicas[source].position().log_index)
        await copying.close()

    with _shards(tmp_path, [1, 2, 3], CollectionSchema("c", DIM, Metric.L2)) as replicas:
        groups = Groups(replicas, rng, 0.1)
        asyncio.run(run(groups))
        whole = _digest([replicas[3]])
        assert whole == _digest([replicas[1], replicas[2]])
        for command, token, answers in told:
            if len(answers) < len([one for group in ring for one in splitters[group].shares(codec.encode(command))]):
                continue
            again = groups.apply(3, command, token)
            assert isinstance(again, WriteResult)
            assert (again.inserted, again.updated, again.deleted, again.missing) == tuple(
                sum(getattr(one, name) for one in answers.values())
                for name in ("inserted", "updated", "deleted", "missing")), "what it did on both"
            assert _digest([replicas[3]]) == whole, "and it is not done again"


def test_records_of_one_value_of_a_shard_key_stay_together(tmp_path: Path) -> None:
    rng = Random(7)
    targets = (CopyTarget(2, 0, MIDDLE, ()), CopyTarget(3, MIDDLE, HASH_SPACE, ()))

    # An id comes once: with another value it would be two records on two shards, and one on their source.
    fresh = iter(rng.sample(range(10_000), 10_000))

    def upsert(count: int) -> UpsertBatch:
        ids = tuple(next(fresh) for _ in range(count))
        return UpsertBatch(ids, np.ones((count, DIM), np.float32),
                           tuple(b'{"t":"%d","n":%d}' % (rng.randrange(9), rng.randrange(5)) for _ in ids))

    async def run(groups: Groups) -> None:
        copying = _copying(groups)
        for _ in range(20):
            groups.apply(1, upsert(10))
        await copying.start(CopyOrder(1, 2, 1, 0, HASH_SPACE, targets, "t"), NOW)
        for at in range(60):
            ids = tuple(rng.sample(sorted(_ids(groups.replicas[1]), key=str), 2))
            groups.apply(1, (upsert(5), DeleteIds(ids), DeleteWhere(parse("n == 2 and t < '5'")),
                             UpdateMetadata(ids, (b'{"n":9}',) * 2))[at % 4])
            await asyncio.sleep(0.001)
        await _until(copying, 1, 1, groups.replicas[1].position().log_index)
        await copying.close()

    with _shards(tmp_path, [1, 2, 3], CollectionSchema("c", DIM, Metric.L2)) as replicas:
        asyncio.run(run(Groups(replicas, rng, 0.0)))
        assert _digest([replicas[2], replicas[3]]) == _digest([replicas[1]])
        for target in targets:
            for fields in _ids(replicas[target.group]).values():
                place = metadata_hash(b'{"t":"%s"}' % str(fields["t"]).encode(), "t")
                assert place is not None
                assert target.lo <= place < target.hi


def _order(fence: int = 2, **more: object) -> CopyOrder:
    return CopyOrder(1, fence, 1, 0, HASH_SPACE, (CopyTarget(2, 0, HASH_SPACE, ()),), **more)  # type: ignore[arg-type]


def _run(tmp_path: Path, test: object, records: int = 300, lost: float = 0.0) -> None:
    with _shards(tmp_path, [1, 2, 3], CollectionSchema("c", DIM, Metric.L2)) as replicas:
        groups = Groups(replicas, Random(1), lost)
        groups.apply(1, UpsertBatch(tuple(range(records)), np.ones((records, DIM), np.float32), (b"{}",) * records))
        asyncio.run(test(groups, _copying(groups)))  # type: ignore[operator]


async def _failed(copying: Copying) -> CopyStatus:
    async with asyncio.timeout(30):
        while True:
            status = await copying.status(1, 1, NOW)
            assert status is not None
            if status.state == "failed":
                return status
            await asyncio.sleep(0.002)


def test_a_copier_of_an_earlier_attempt_gives_way(tmp_path: Path) -> None:
    async def test(groups: Groups, copying: Copying) -> None:
        await copying.start(_order(), NOW)
        later = CopyOrder(1, 3, 1, 0, HASH_SPACE, (CopyTarget(3, 0, HASH_SPACE, ()),))
        assert (await copying.start(later, NOW)).fence == 3
        with pytest.raises(InvalidArgument):
            await copying.start(_order(), NOW)
        await _until(copying, 1, 1, 1)
        assert _digest([groups.replicas[3]]) == _digest([groups.replicas[1]])
        await copying.stop(1, 1, NOW)
        assert await copying.status(1, 1, NOW) is None
        await copying.stop(1, 1, NOW)

    _run(tmp_path, test)


def test_two_copiers_of_one_attempt_do_not_mix(tmp_path: Path) -> None:
    """The first one's node was not heard of any more, and lives on."""
    async def test(groups: Groups, copying: Copying) -> None:
        zombie = Copying(lambda group: groups.replicas[group], groups.propose, draw=lambda: 1_000)
        await copying.start(_order(), NOW)
        await _until(copying, 1, 1, 1)
        await zombie.start(_order(), NOW)
        status = await _failed(zombie)
        assert "another copier" in status.error
        assert _digest([groups.replicas[2]]) == _digest([groups.replicas[1]])
        await copying.close()

    _run(tmp_path, test)


def test_a_copier_ends_where_it_cannot_go_on(tmp_path: Path) -> None:
    async def test(groups: Groups, copying: Copying) -> None:
        groups.gone.add(2)
        await copying.start(_order(), NOW)
        assert "CollectionNotFound" in (await _failed(copying)).error
        assert (await copying.start(_order(), NOW)).state == "failed", "it is an attempt with other targets that helps"
        await copying.close()

    _run(tmp_path, test)


def test_a_source_that_changes_too_fast_ends_it(tmp_path: Path) -> None:
    async def test(groups: Groups, copying: Copying) -> None:
        class Tight:
            def follow(self, *, moving: bool = False) -> Follow:
                return groups.replicas[1].follow(FollowLimits(1, 1))

        tight = Copying(lambda group: Tight(), groups.propose, draw=lambda: 5)
        await tight.start(_order(), NOW)
        await _until(tight, 1, 1, 1)
        groups.apply(1, UpsertBatch((1,), np.ones((1, DIM), np.float32), (b"{}",)))
        assert "Overloaded" in (await _failed(tight)).error
        await tight.close()

    _run(tmp_path, test)


def test_a_pace_is_kept_and_may_be_changed(tmp_path: Path) -> None:
    async def test(groups: Groups, copying: Copying) -> None:
        await copying.start(_order(bytes_per_s=1), NOW)
        await asyncio.sleep(0.2)
        groups.apply(1, DeleteIds((1,)))
        slow = await copying.status(1, 1, NOW)
        assert slow is not None
        assert slow.copied_to < 2, "the next piece has to wait for hours"
        await copying.stop(1, 1, NOW)
        await copying.start(CopyOrder(1, 3, 1, 0, HASH_SPACE, (CopyTarget(3, 0, HASH_SPACE, ()),)), NOW)
        await _until(copying, 1, 1, 2)
        await copying.close()

    _run(tmp_path, test)


def test_what_waits_by_a_pace_goes_on_by_the_next_one(tmp_path: Path) -> None:
    """A piece that had to wait for hours is on its way once there is no limit any more, or another one."""
    async def test(groups: Groups, copying: Copying) -> None:
        await copying.start(_order(bytes_per_s=1), NOW)
        await _until_bytes(copying)
        for rate in (1 << 10, 1 << 20):
            assert (await copying.start(_order(bytes_per_s=rate), NOW)).copied_to < 1
            await asyncio.sleep(0)
        await _until(copying, 1, 1, 1)
        assert _digest([groups.replicas[2]]) == _digest([groups.replicas[1]])
        await copying.close()

    _run(tmp_path, test)


async def _until_bytes(copying: Copying) -> None:
    """The first piece waits for nothing."""
    async with asyncio.timeout(60):
        while not (status := await copying.status(1, 1, NOW)) or not status.bytes:
            await asyncio.sleep(0.002)


def test_a_limit_below_what_is_written_is_told_until_it_is_raised(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying_module, "WINDOW_S", 0.1)

    async def test(groups: Groups, copying: Copying) -> None:
        async def written_until(said: bool, rate: int) -> str:
            """What a copier says that is asked as the governor does, while there are writes."""
            async with asyncio.timeout(60):
                while True:
                    groups.apply(1, UpsertBatch((1,), np.ones((1, DIM), np.float32), (b"{}",)))
                    status = await copying.start(_order(bytes_per_s=rate), NOW)
                    assert status.state != "failed", status.error
                    if status.error.endswith(NEVER) is said:
                        return status.error
                    await asyncio.sleep(0.002)

        assert await written_until(False, 10) == "", "nothing is known yet"
        said = await written_until(True, 10)
        assert said.startswith("writes come at ")
        assert "bytes/s, the limit is 10: it cannot catch up" in said
        await written_until(False, 1 << 40)
        await written_until(True, 10)
        await written_until(False, 0)
        await _until(copying, 1, 1, groups.replicas[1].position().log_index)
        assert _digest([groups.replicas[2]]) == _digest([groups.replicas[1]])
        await copying.close()

    _run(tmp_path, test)


def test_a_copier_that_is_stopped_while_it_begins_lets_go_of_its_source(tmp_path: Path) -> None:
    """Whoever follows a source keeps what it held then, and what changes it."""
    following, go_on = threading.Event(), threading.Event()
    taken: list[Follow] = []

    async def propose(target: CopyTarget, command: bytes, seconds: float) -> object:
        raise Unavailable("nobody is to be asked")

    with _shards(tmp_path, [1], CollectionSchema("c", DIM, Metric.L2)) as replicas:
        class Source:
            def follow(self, *, moving: bool = False) -> Follow:
                following.set()
                go_on.wait(60)
                taken.append(replicas[1].follow())
                return taken[0]

        async def run() -> None:
            copying = Copying(lambda group: Source(), propose, draw=lambda: 1)
            await copying.start(_order(), NOW)
            await asyncio.get_running_loop().run_in_executor(None, following.wait, 60)
            await copying.stop(1, 1, NOW)
            go_on.set()
            async with asyncio.timeout(30):
                while not taken or taken[0]._view is not None:
                    await asyncio.sleep(0.002)

        asyncio.run(run())
