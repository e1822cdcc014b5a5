"""What a shard that is filled from others takes: once, from one copier; and what it knows of writes before that."""

from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.replicas import DIM, SCHEMA, open_replicas, replica_at
from tests.unit.shard.test_codec import commands
from vecdb.cluster.merge import merge_writes
from vecdb.cluster.routing import hash_of_id, metadata_hash
from vecdb.core.calls import WriteToken
from vecdb.core.errors import DataCorrupted, InvalidArgument, ShardSealed, VecdbError
from vecdb.core.filters import parse
from vecdb.core.records import Command, DeleteIds, DeleteWhere, Outcome, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.ports.copies import CopyTarget
from vecdb.services.copying import Splitter
from vecdb.services.replica import ShardReplica
from vecdb.shard import codec, rows
from vecdb.shard.codec import LogCommand
from vecdb.shard.imports import Import, Imports, Memory, Remembered
from vecdb.shard.mutations import Mutations
from vecdb.shard.seal import Seal

LAST = (1 << 64) - 1
HALF = 1 << 63


def _upsert(*ids: int, body: bytes = b"{}") -> UpsertBatch:
    return UpsertBatch(ids, np.full((len(ids), DIM), 0.5, np.float32), (body,) * len(ids))


def _apply(replica: ShardReplica, command: LogCommand, token: WriteToken | None = None) -> object:
    return replica.apply(replica.position().log_index + 1, 1, codec.encode(command, token))


def _piece(sequence: int, *commands: Command, source: int = 1, run: int = 7, lane: int = 0, lo: int = 0,
           last: int = LAST, memories: tuple[Memory, ...] = (), shard_key: str = "",
           token: WriteToken | None = None) -> Import:
    return Import(source, run, lane, sequence, lo, last, shard_key, tuple(codec.encode(one, token) for one in commands),
                  memories)


def _records(replica: ShardReplica) -> int:
    return replica.digest().records


MEMORIES = st.builds(
    Memory, st.integers(0, LAST),
    st.lists(st.builds(Remembered, st.binary(min_size=1, max_size=64), st.integers(0, LAST),
                       st.tuples(*[st.integers(0, LAST)] * 4), st.just(3), st.just(LAST), st.booleans()),
             max_size=4).map(tuple))


@given(commands=st.lists(commands(), max_size=3), memories=st.lists(MEMORIES, max_size=3), cut=st.floats(0, 0.999),
       shard_key=st.text(max_size=9))
def test_pieces_are_read_as_they_were_written(commands: list[Command], memories: list[Memory], cut: float,
                                              shard_key: str) -> None:
    piece = Import(1, 2, 3, 4, 5, LAST, shard_key, tuple(map(codec.encode, commands)), tuple(memories))
    data = codec.encode(piece)
    assert codec.decode(data) == (piece, None)
    for bad in (data[:int(len(data) * cut)], data + b"x"):
        with pytest.raises(VecdbError):
            codec.decode(bad)


def test_a_piece_is_taken_once_and_in_order(tmp_path: Path) -> None:
    with replica_at(tmp_path / "a") as replica:
        assert _apply(replica, _piece(1, _upsert(1, 2))) == WriteResult(inserted=2, log_index=1)
        assert _apply(replica, _piece(2, DeleteIds((1,)))) == WriteResult(deleted=1, log_index=2)
        assert _apply(replica, _piece(1, _upsert(1, 2))) == WriteResult(log_index=3)
        assert _apply(replica, _piece(2, DeleteIds((2,)))) == WriteResult(log_index=4), "whatever is in it"
        assert isinstance(_apply(replica, _piece(4, _upsert(5))), InvalidArgument)
        assert _records(replica) == 1
        assert _apply(replica, _piece(1, _upsert(9), lane=1)) == WriteResult(inserted=1, log_index=6), "by lane"
        assert isinstance(_apply(replica, _piece(3, _upsert(5), run=8)), InvalidArgument), "another copier's"
        assert isinstance(_apply(replica, _piece(1, _upsert(5), run=8, lane=2)), InvalidArgument)
        assert isinstance(_apply(replica, _piece(1, _upsert(5), run=8, source=2)), WriteResult), "of another source"
        assert _records(replica) == 3


def test_commands_of_a_piece_follow_one_another(tmp_path: Path) -> None:
    with replica_at(tmp_path / "a") as replica, replica_at(tmp_path / "b") as other:
        steps: list[Command] = [_upsert(1, 2, 3), UpdateMetadata((2,), (b'{"n":1}',)), DeleteIds((1,)), _upsert(1, 4),
                                DeleteWhere(parse("n == 1"))]
        _apply(replica, _piece(1, *steps))
        assert replica.position().log_index == 1
        for one in steps:
            _apply(other, one)
        assert replica.digest().digest == other.digest().digest
        assert _records(replica) == 3


def test_a_piece_that_was_cut_off_goes_on_where_it_was(tmp_path: Path) -> None:
    """The power goes between two of its commands: the log brings it back."""
    database = open_replicas(tmp_path / "a")
    database.host(SCHEMA, "g00000001")
    replica = database.replica("c")
    piece = _piece(1, _upsert(1, 2), DeleteIds((1,)), _upsert(1, 3))
    service = replica.service
    with service.writing():
        for _ in range(2):
            applied, more = service.machine.take(1, 1, piece)
            assert more
            service._commit(service.machine, applied)
    assert replica.position() == (0, 0)
    database.close()
    database = open_replicas(tmp_path / "a")
    try:
        replica = database.replica("c")
        assert (_records(replica), replica.position().log_index) == (1, 0)
        assert replica.apply(1, 1, codec.encode(piece)) == WriteResult(inserted=2, log_index=1), "what was left of it"
        with replica_at(tmp_path / "b") as other:
            _apply(other, piece)
            assert other.digest() == replica.digest()
        assert _apply(replica, piece) == WriteResult(log_index=2)
    finally:
        database.close()


def test_a_write_from_before_is_not_done_again(tmp_path: Path) -> None:
    token, counts = WriteToken(b"k", 5), (3, 1, 0, 0)
    memory = Memory(1, (Remembered(b"k", 5, counts),))
    with replica_at(tmp_path / "a") as replica:
        _apply(replica, _piece(1, memories=(memory,)))
        for command in (_upsert(1, 2), DeleteIds((1,))):
            answer = _apply(replica, command, token)
            assert answer == WriteResult(3, 1, log_index=1), "what it did as a whole"
            assert isinstance(answer, WriteResult)
            assert answer.outcomes == (Outcome(1, None, counts),), "and where"
        assert _records(replica) == 0
        assert isinstance(_apply(replica, _upsert(1), WriteToken(b"k", 6)), InvalidArgument)
        _apply(replica, Seal(1, 1))
        assert _apply(replica, _upsert(1), token) == answer
        assert isinstance(_apply(replica, _upsert(1), WriteToken(b"l")), ShardSealed)
        assert isinstance(_apply(replica, _piece(2, _upsert(1))), ShardSealed)


def test_a_replayed_command_answers_for_its_part(tmp_path: Path) -> None:
    token = WriteToken(b"k", 5)
    with replica_at(tmp_path / "a") as replica:
        _apply(replica, _piece(1, _upsert(1, 2), token=token))
        assert _apply(replica, _upsert(1, 2), token) == WriteResult(inserted=2, log_index=1)
        replica.checkpoint()


@pytest.mark.parametrize("shard_key", ["", "t"])
def test_the_half_that_another_shard_never_saw_is_done(tmp_path: Path, shard_key: str) -> None:
    """Two shards were merged, and a write had reached one of them."""
    bodies = {number: b'{"t":"%d","n":1}' % number for number in range(40)}

    def lower(number: int) -> bool:
        place = metadata_hash(bodies[number], "t") if shard_key else hash_of_id(number)
        assert place is not None
        return place < HALF

    batch = UpsertBatch(tuple(bodies), np.ones((40, DIM), np.float32), tuple(bodies.values()))
    low = [number for number in bodies if lower(number)]
    token = WriteToken(b"k", 5)
    memory = Memory(1, (Remembered(b"k", 5, (len(low), 0, 0, 0), 0, HALF - 1),))
    with replica_at(tmp_path / "a") as replica:
        _apply(replica, _piece(1, last=HALF - 1, memories=(memory,), shard_key=shard_key))
        _apply(replica, _piece(1, source=2, lo=HALF, shard_key=shard_key))
        assert _apply(replica, batch, token) == WriteResult(inserted=40, log_index=3)
        assert _records(replica) == 40 - len(low), "the others are not there, for what came after took them away"
        assert _apply(replica, batch, token) == WriteResult(inserted=40, log_index=3), "now it is this shard's own"


@pytest.mark.parametrize("command", [DeleteIds(tuple(range(60))), DeleteWhere(parse("n == 1")),
                                     UpdateMetadata(tuple(range(60)), (b'{"x":2}',) * 60)])
def test_other_writes_are_done_by_halves_as_well(tmp_path: Path, command: Command) -> None:
    token = WriteToken(b"k", 5)
    memory = Memory(1, (Remembered(b"k", 5, (0, 0, 0, 0), 0, HALF - 1),))
    with replica_at(tmp_path / "a") as replica, replica_at(tmp_path / "b") as other:
        _apply(replica, _upsert(*range(40), body=b'{"n":1}'))
        _apply(replica, _piece(1, last=HALF - 1, memories=(memory,)))
        _apply(replica, _piece(1, source=2, lo=HALF))
        done = _apply(replica, command, token)
        _apply(other, _upsert(*range(40), body=b'{"n":1}'))
        upper = tuple(one for one in range(60) if hash_of_id(one) >= HALF)
        expected = _apply(other, DeleteIds(tuple(one for one in upper if one < 40)) if isinstance(command, DeleteWhere)
                          else DeleteIds(upper) if isinstance(command, DeleteIds)
                          else UpdateMetadata(upper, (b'{"x":2}',) * len(upper)))
        assert isinstance(done, WriteResult)
        assert isinstance(expected, WriteResult)
        assert (done.updated, done.deleted, done.missing) == (expected.updated, expected.deleted, expected.missing)
        assert replica.digest().digest == other.digest().digest


class _Rows:
    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}

    def write(self, mutations: Mutations) -> None:
        for key in mutations.deletes:
            del self.rows[key]
        self.rows.update(mutations.puts)

    def imports(self, most: int) -> Imports:
        return Imports(sorted(self.rows.items()), most)


@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=8), natural=st.integers(0, 12))
def test_keys_leave_one_by_one_and_rows_say_the_same(sizes: list[int], natural: int) -> None:
    most, store, imports = 10, _Rows(), Imports(most=10)
    known: list[bytes] = []
    for sequence, size in enumerate(sizes, 1):
        writes = tuple(Remembered(b"%d-%d" % (sequence, at), at, (at, 0, 0, 0)) for at in range(size))
        known = [*known, *(one.key for one in writes)][-most:]
        mutations, piece = Mutations(), _piece(sequence)
        assert imports.begin(piece) == 0
        change = imports.progress(mutations, piece, None)
        imports.remember(mutations, change, sequence, piece, [Memory(1, writes)])
        store.write(mutations)
        imports.commit(change)
    for own in range(1, natural + 1):
        mutations = Mutations()
        left = imports.make_room(mutations, min(own, most))
        if left is not None:
            store.write(mutations)
            imports.commit(left)
    known = known[max(0, len(known) + min(natural, most) - most):]
    again = store.imports(most)
    for one in (imports, again):
        assert [write.key for memory in one.memories() for write in memory.writes] == known
        assert one.lanes == {(1, 0): (len(sizes), 0)}


@pytest.mark.parametrize("command", [_upsert(*range(40)), DeleteIds(tuple(range(40))),
                                     UpdateMetadata(tuple(range(40)), (b'{"x":2}',) * 40)])
def test_parts_of_one_write_come_one_by_one(tmp_path: Path, command: UpsertBatch | DeleteIds | UpdateMetadata) -> None:
    """They were cut for two shards, which refused them; now both are this one."""
    token = WriteToken(b"k", 5)
    parts = [codec.encode(codec.decode(share.command)[0], token)
             for target in (CopyTarget(1, 0, HALF, ()), CopyTarget(2, HALF, LAST + 1, ()))
             for share in Splitter([target], "").shares(codec.encode(command, token))]

    def counts(answer: object) -> tuple[int, int, int, int]:
        assert isinstance(answer, WriteResult)
        return answer.inserted, answer.updated, answer.deleted, answer.missing

    database = open_replicas(tmp_path / "a")
    database.host(SCHEMA, "g00000001")
    replica = database.replica("c")
    with replica_at(tmp_path / "b") as other:
        for one in (replica, other):
            _apply(one, _piece(1, source=1, last=HALF - 1))
            _apply(one, _piece(1, source=2, lo=HALF))
            _apply(one, _upsert(*range(0, 40, 3)))
        whole = _apply(other, command, token)
        told = [replica.apply(replica.position().log_index + 1, 1, part) for part in parts]
        assert tuple(map(sum, zip(*map(counts, told), strict=True))) == counts(whole)
        assert replica.digest().digest == other.digest().digest, "neither is taken for the other"
        for again in (parts[0], parts[1], codec.encode(command, token)):
            replica.apply(replica.position().log_index + 1, 1, again)
            assert replica.digest().digest == other.digest().digest
        replica.checkpoint()
        database.close()
        database = open_replicas(tmp_path / "a")
        replica = database.replica("c")
        assert counts(_apply(replica, command, token)) == counts(whole), "after a restart as well"
        assert [counts(replica.apply(replica.position().log_index + 1, 1, part)) for part in parts] == [
            counts(one) for one in told]
        follow = replica.follow()
        (memory,) = [one for one in follow.memories(9, 0, LAST + 1) if one.origin == 9]
        follow.close()
        assert tuple(map(sum, zip(*(one.counts for one in memory.writes), strict=True))) == counts(whole)
        database.close()


@pytest.mark.parametrize("remembered", [False, True])
def test_a_part_that_the_source_did_is_not_taken_for_the_whole(tmp_path: Path, remembered: bool) -> None:
    """The source was merged of three shards; of a write that was cut for these, the first and the last part came to it
    before it was sealed, and the second comes to the shard that took its place.
    """
    token, source, target = WriteToken(b"k", 5), tmp_path / "a", tmp_path / "b"
    edges = [0, 1 << 62, 3 << 62, LAST + 1]
    first, second, third = ([one for one in range(60) if lo <= hash_of_id(one) < hi] for lo, hi in pairwise(edges))
    with replica_at(source) as merged, replica_at(target) as heir:
        _apply(merged, _piece(1))
        if remembered:
            for part in (first, third):
                _apply(merged, _upsert(*part), token)
            follow = merged.follow()
            _apply(heir, _piece(1, _upsert(*first, *third), source=9, memories=tuple(follow.memories(9, 0, LAST + 1))))
            follow.close()
        else:
            for sequence, part in enumerate((first, third), 1):
                _apply(heir, _piece(sequence, _upsert(*part), source=9, token=token))
        assert _records(heir) == len(first) + len(third)
        assert isinstance(done := _apply(heir, _upsert(*second), token), WriteResult)
        assert (done.inserted, _records(heir)) == (len(second), 60)
        _apply(heir, DeleteIds(tuple(range(60))))
        for part in (first, second, third, [*first, *second, *third]):
            assert isinstance(again := _apply(heir, _upsert(*part), token), WriteResult)
            assert _records(heir) == 0, "nor is a part done again"
            assert again.inserted == len(part)


class _Copy:
    """A shard's copy into others, as a copier makes it."""

    def __init__(self, group: int, source: ShardReplica, lo: int, hi: int, *targets: tuple[CopyTarget, ShardReplica],
                 shard_key: str = "") -> None:
        self._place, self._targets, self._shard_key = (group, lo, hi), targets, shard_key
        self._splitter = Splitter([one for one, _ in targets], shard_key)
        self._sequence = 0
        self._follow = source.follow(moving=bool(shard_key) and len(targets) > 1)
        chunks = [codec.encode(chunk) for chunk in self._follow.chunks(1 << 20)]
        self._send(chunks, self._follow.memories(*self._place))

    def _send(self, commands: list[bytes], memories: list[Memory]) -> None:
        group, lo, hi = self._place
        shares = [share for command in commands for share in self._splitter.shares(command)]
        self._sequence += 1
        for target, replica in self._targets:
            mine = tuple(share.command for share in shares if share.target is target)
            _apply(replica, Import(group, 100 + group, 0, self._sequence, lo, hi - 1, self._shard_key, mine,
                                   tuple(memories)))

    def end(self) -> None:
        group, lo, hi = self._place
        changes = self._follow.take(1 << 20).changes
        writes = tuple(one.write.within(lo, hi - 1) for one in changes if one.write is not None)
        self._send([command for one in changes for command in one.commands], [Memory(group, writes)])
        self._follow.close()


WRITES: list[Command] = [_upsert(*range(60), body=b'{"n":1,"t":"a"}'), DeleteIds(tuple(range(60))),
                         UpdateMetadata(tuple(range(60)), (b'{"x":2}',) * 60), DeleteWhere(parse("n == 1"))]


@pytest.mark.parametrize(("command", "merged", "before"), [
    *((one, merged, False) for one in WRITES for merged in (True, False)), (WRITES[0], True, True)])
def test_a_write_is_answered_with_its_counts_over_two_reshards(tmp_path: Path, command: Command, merged: bool,
                                                               before: bool) -> None:
    """A shard is split while it is written to or before, and then its halves are merged, or split once more."""
    token, edges = WriteToken(b"k", 5), [0, 1 << 62, HALF, 3 << 62, LAST + 1]
    with ExitStack() as stack:
        first, low, high, *last = (stack.enter_context(replica_at(tmp_path / name))
                                   for name in ("abcd" if merged else "abcdefg"))
        _apply(first, _upsert(*range(0, 60, 3), body=b'{"n":1,"t":"a"}'))
        told = _apply(first, command, token) if before else None
        halves = CopyTarget(2, 0, HALF, ()), CopyTarget(3, HALF, LAST + 1, ())
        copy = _Copy(1, first, 0, LAST + 1, (halves[0], low), (halves[1], high))
        told = told or _apply(first, command, token)
        copy.end()
        if merged:
            edges = [0, LAST + 1]
            for group, source, lo, hi in ((2, low, 0, HALF), (3, high, HALF, LAST + 1)):
                _Copy(group, source, lo, hi, (CopyTarget(4, lo, hi, ()), last[0])).end()
        else:
            for group, source, at in ((2, low, 0), (3, high, 2)):
                _Copy(group, source, edges[at], edges[at + 2], *(
                    (CopyTarget(4 + place, edges[place], edges[place + 1], ()), last[place])
                    for place in (at, at + 1))).end()
        heirs = [CopyTarget(4 + at, *edge, ()) for at, edge in enumerate(pairwise(edges))]
        parts = {share.target.group - 4: share.command for share in Splitter(heirs, "").shares(codec.encode(command))}
        answers = [_apply(last[at], codec.decode(data)[0], token) for at, data in parts.items()]
        assert isinstance(told, WriteResult)
        assert merge_writes(answers, command).counts == told.counts
        assert sum(one.digest().records for one in last) == first.digest().records


@pytest.mark.parametrize("command", [DeleteIds((0, 3, 6, 7)), UpdateMetadata((0, 3, 6, 7), (b'{"n":2}',) * 4)])
def test_ids_that_every_shard_was_asked_for_are_missing_as_before_once_shards_were_merged(
        tmp_path: Path, command: DeleteIds | UpdateMetadata) -> None:
    """With a shard key: which shard has an id is not known, so most of them miss it."""
    token = WriteToken(b"k", 5)
    with replica_at(tmp_path / "a") as low, replica_at(tmp_path / "b") as high, replica_at(tmp_path / "c") as both:
        told = []
        for group, source, ids in ((1, low, (0, 3)), (2, high, (6, 9))):
            _apply(source, _upsert(*ids, body=b'{"n":1,"t":"a"}'))
            done = _apply(source, command, token)
            assert isinstance(done, WriteResult)
            told.append(replace(done, shard=group))
        first = merge_writes(told, command, everywhere=True)
        assert first.missing == 1
        for group, source, lo, hi in ((1, low, 0, HALF), (2, high, HALF, LAST + 1)):
            _Copy(group, source, lo, hi, (CopyTarget(3, lo, hi, ()), both), shard_key="t").end()
        again = _apply(both, command, token)
        assert isinstance(again, WriteResult)
        assert merge_writes([replace(again, shard=3)], command, everywhere=True).counts == first.counts


@pytest.mark.parametrize("before", [True, False])
def test_what_a_filter_did_in_a_filled_shard_has_one_name_there_and_where_its_records_came(tmp_path: Path, before: bool
                                                                                          ) -> None:
    """A router may hear of it from both: from the shard before it was split, and, for another part, from its heirs."""
    token, command = WriteToken(b"k", 5), DeleteWhere(parse("n == 1"))
    with replica_at(tmp_path / "a") as source, replica_at(tmp_path / "b") as low, replica_at(tmp_path / "c") as high:
        _apply(source, _piece(1, lo=HALF))
        _apply(source, _upsert(*(one for one in range(60) if hash_of_id(one) >= HALF), body=b'{"n":1}'))
        told = _apply(source, command, token) if before else None
        middle = HALF + (HALF >> 1)
        copy = _Copy(5, source, HALF, LAST + 1, (CopyTarget(6, HALF, middle, ()), low),
                     (CopyTarget(7, middle, LAST + 1, ()), high))
        told = told or _apply(source, command, token)
        copy.end()
        answers = []
        for group, done in ((5, told), (5, _apply(source, command, token)), (6, _apply(low, command, token)),
                            (7, _apply(high, command, token))):
            assert isinstance(done, WriteResult)
            answers.append(replace(done, shard=group))
        assert answers[0].deleted > 20
        assert merge_writes(answers, command).counts == answers[0].counts


def test_a_write_that_is_no_json_is_refused_by_a_shard_that_was_filled_by_a_shard_key(tmp_path: Path) -> None:
    with replica_at(tmp_path / "a") as replica:
        _apply(replica, _piece(1, shard_key="t"))
        for command in (_upsert(1, body=b"nonsense"), UpdateMetadata((1,), (b"nonsense",), merge=False),
                        UpdateMetadata((1,), (b"[]",), merge=False), UpdateMetadata((1, 2), (), merge=False)):
            assert isinstance(_apply(replica, command, WriteToken(b"k", 5)), VecdbError | WriteResult)
        assert (_records(replica), replica.position().log_index) == (0, 5)


def test_parts_of_a_replacement_that_come_one_by_one_to_a_merged_shard_are_all_done(tmp_path: Path) -> None:
    """With a shard key: it is cut by the values that the objects have, for two shards that had refused it."""
    token, tenants = WriteToken(b"k", 5), sorted(range(8), key=lambda one: metadata_hash(b'{"t":%d}' % one, "t") or 0)
    ids = tuple(tenants)
    old, new = (tuple(b'{"t":%d,"n":%d}' % (one, number) for one in ids) for number in (1, 2))
    with replica_at(tmp_path / "a") as both:
        middle = metadata_hash(new[4], "t")
        assert middle is not None
        _apply(both, _piece(1, last=middle - 1, shard_key="t"))
        _apply(both, _piece(1, source=2, lo=middle, shard_key="t"))
        _apply(both, UpsertBatch(ids, np.ones((8, DIM), np.float32), old))
        parts = [UpdateMetadata(ids[at:at + 4], new[at:at + 4], merge=False) for at in (0, 4)]
        for part in (*parts, *parts):
            done = _apply(both, part, token)
            assert isinstance(done, WriteResult)
            assert done.counts == (0, 4, 0, 0)
        digest = both.digest().digest
        whole = _apply(both, UpdateMetadata(ids, new, merge=False), token)
        assert isinstance(whole, WriteResult)
        assert (whole.counts, both.digest().digest) == ((0, 8, 0, 0), digest)
        _apply(both, UpdateMetadata(ids, new, merge=False), WriteToken(b"another", 5))
        assert both.digest().digest == digest, "all have what they were to have"


@pytest.mark.parametrize("shard_key", ["", "t"])
@pytest.mark.parametrize("command", WRITES)
def test_of_a_write_that_the_source_did_a_part_of_a_copy_has_that_part(tmp_path: Path, command: Command, shard_key: str
                                                                      ) -> None:
    """The source took the place of one shard that had done the write, whose records were written to since."""
    token, bodies = WriteToken(b"k", 5), {one: b'{"n":1,"later":1,"t":"%d"}' % one for one in range(50)}
    if isinstance(command, UpsertBatch) and shard_key:
        command = UpsertBatch(tuple(bodies), np.full((50, DIM), 0.5, np.float32), tuple(bodies.values()))
    memory = Memory(1, (Remembered(b"k", 5, (7, 0, 0, 0), 0, HALF - 1),))
    with replica_at(tmp_path / "a") as source, replica_at(tmp_path / "b") as low, replica_at(tmp_path / "c") as high:
        _apply(source, _piece(1, last=HALF - 1, memories=(memory,), shard_key=shard_key))
        _apply(source, _piece(1, source=2, lo=HALF, shard_key=shard_key))
        _apply(source, UpsertBatch(tuple(bodies), np.ones((50, DIM), np.float32), tuple(bodies.values())))
        targets = CopyTarget(10, 0, 1 << 62, ()), CopyTarget(11, 1 << 62, LAST + 1, ())
        copy = _Copy(9, source, 0, LAST + 1, (targets[0], low), (targets[1], high), shard_key=shard_key)
        told = _apply(source, command, token)
        copy.end()
        digests = [int(one.digest().digest, 16) for one in (low, high)]
        assert sum(digests) % (1 << 128) == int(source.digest().digest, 16)
        answers = [_apply(one, command, token) for one in (low, high)]
        assert isinstance(told, WriteResult)
        assert told.counts != (7, 0, 0, 0)
        assert merge_writes(answers, command).counts == told.counts
        assert [int(one.digest().digest, 16) for one in (low, high)] == digests, "nothing is left to do"


def test_rows_that_make_no_sense_are_damage() -> None:
    for key, value in ((rows.origin_row(1), b"short"), (rows.lane_row(1, 0), b""), (rows.memory_row(1, 0), b"x" * 80)):
        with pytest.raises(DataCorrupted):
            Imports([(key, value)])
