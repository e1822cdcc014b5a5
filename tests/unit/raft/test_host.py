"""A host's care for logs and states that a crash has left: what may be taken up, what must come back as another."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.raft.test_messages import MESSAGES
from vecdb.core.errors import InvalidArgument, StorageError, Unavailable
from vecdb.ports.replicator import Position
from vecdb.raft.host import Host
from vecdb.raft.log import Intent, LogStore, entry_key
from vecdb.raft.membership import Change, Configuration
from vecdb.raft.messages import (
    COMMAND,
    Append,
    Appended,
    Chunk,
    Entry,
    Envelope,
    Gone,
    Offer,
    decode,
    encode,
    encode_frame,
    split_frame,
)
from vecdb.raft.settings import RaftSettings
from vecdb.testing.disk import MemoryStore
from vecdb.testing.register import WRITE, RegisterDisk, RegisterMachine, Registers, command

VOTERS = ("a/1", "b/1", "c/1")
MEMBERS = Configuration.of(VOTERS)


class Hands:
    """A shell moved by hand."""

    def __init__(self):
        self.frames, self.jobs, self.bulky = [], [], []

    def send(self, node, frame, *, bulk=False):
        if bulk:
            self.bulky.append([decode(data).message for data in split_frame(frame)])
            return
        self.frames += [(node, decode(data)) for data in split_frame(frame)]

    def store(self, batch, done):
        self.jobs.append((batch.write, lambda _, error: done(error)))

    def after(self, seconds, act):
        self.jobs.append((lambda: None, lambda *_: act()))

    def run(self, lane, work, done):
        self.jobs.append((work, done))

    def work(self):
        while self.jobs:
            work, done = self.jobs.pop(0)
            try:
                result, error = work(), None
            except Exception as failed:
                result, error = None, failed
            done(result, error)


def host_on(store, position=None, **more):
    hands = Hands()
    host = Host("a", LogStore(store), hands, clock=lambda: 10.0, random=Random(1))
    disk = RegisterDisk()
    if position is not None:
        disk.state = Registers(position=position).to_bytes()
    replica = host.add(1, RegisterMachine(disk), number=1, **(more or {"voters": VOTERS}))
    host.turn()
    hands.work()
    return host, hands, replica


def log_of(store, entries, base=1, base_term=0, intent=None):
    """Leave a log on the disk."""
    logs = LogStore(store)
    log = logs.create(1, 1, MEMBERS, base, base_term)
    for at in range(entries):
        log.add(COMMAND + b"x", base + 1 + at, max(base_term, 1))
    log.intend(intent)
    batch = logs.take()
    batch.write()
    return store


def test_a_log_is_taken_up_where_the_state_is():
    _, _, replica = host_on(log_of(MemoryStore(), 9), Position(5, 1))
    assert (replica.core.applied, replica.core.log.last, replica.core.me) == (5, 10, "a/1")


@pytest.mark.parametrize(("entries", "base", "position"), [
    (9, 20, Position(5, 1)), (9, 1, Position(50, 1)), (9, 1, Position(5, 7))],
    ids=["the state ends before the log", "the state is ahead of the log", "another term"])
def test_log_and_state_that_cannot_both_be_right_come_back_under_another_number(entries, base, position):
    store = log_of(MemoryStore(), entries, base, 1 if base > 1 else 0)
    _, _, replica = host_on(store, position)
    assert replica.core.log.number > 1
    assert replica.core.configuration == Configuration()
    assert (replica.core.applied, replica.core.log.base_term) == (position.log_index, position.term)
    assert replica.status().state == "joining"


def test_killed_after_a_snapshot_was_installed_the_log_begins_behind_it():
    members = Configuration.of([*VOTERS, "d/1"])
    store = log_of(MemoryStore(), 9, intent=Intent(50, 3, members))
    _, _, replica = host_on(store, Position(50, 3))
    assert (replica.core.me, replica.core.log.base, replica.core.applied) == ("a/1", 50, 50)
    assert replica.core.configuration == members


def test_killed_before_a_snapshot_was_installed_the_log_stays():
    store = log_of(MemoryStore(), 9, intent=Intent(50, 3, MEMBERS))
    _, _, replica = host_on(store, Position(5, 1))
    assert (replica.core.log.last, replica.core.log.intent) == (10, None)


def test_an_intent_that_was_overtaken_by_the_log_shortens_nothing():
    """The snapshot was meant to be of 5; the entries came instead, and 10 are promised."""
    store = log_of(MemoryStore(), 9, intent=Intent(5, 1, MEMBERS))
    _, _, replica = host_on(store, Position(5, 1))
    assert (replica.core.log.base, replica.core.log.last) == (1, 10)


def test_a_log_that_is_gone_or_damaged_says_so_to_who_leads_and_asks_for_its_place():
    for store, existing in ((MemoryStore(), True), (log_of(MemoryStore(), 3), False)):
        if not existing:
            key = next(key for key, _ in store.scan(b"l", b"m"))
            store._rows[key] = b"nonsense"
        host, hands, replica = host_on(store, voters=VOTERS, existing=existing)
        number = replica.core.log.number
        assert number >= 1 << 16
        host.receive("b", encode_frame([encode(Envelope(1, 1, 1, Append(4, 1, 3, 1, 3)))]))
        hands.work()
        assert hands.frames == [("b", Envelope(1, 1, 1, Gone(4, number)))]


def test_a_replica_that_is_new_here_is_no_damage_and_one_whose_state_is_there_is():
    for position, level, event in ((Position(0, 0), "info", "raft_joins_anew"),
                                   (Position(50, 1), "error", "raft_log_damaged")):
        told = []
        host = Host("a", LogStore(MemoryStore()), Hands(), clock=lambda: 0.0, random=Random(1),
                    tell=lambda level, event, told=told, **fields: told.append((level, event)))
        machine = RegisterMachine(RegisterDisk(Registers(position=position).to_bytes()))
        host.add(1, machine, number=7, existing=True)
        assert told == [(level, event)]


def test_what_is_not_for_us_is_dropped_and_counted():
    host, hands, _ = host_on(MemoryStore())
    host.receive("b", b"nonsense and more of it")
    host.receive("b", encode_frame([b"nonsense"]))
    host.receive("b", encode_frame([encode(Envelope(2, 1, 1, Append(1, 1, 1, 0, 0)))]))
    host.receive("b", encode_frame([encode(Envelope(1, 1, 9, Append(1, 1, 1, 0, 0)))]))
    assert dict(host.dropped) == {"malformed": 2, "unknown_group": 1, "unknown_replica": 1}
    assert hands.frames == []


def test_promises_wait_for_the_disk_and_a_refusing_disk_ends_them():
    store = MemoryStore()
    host, hands, replica = host_on(store)
    entry = Entry(COMMAND + b"x", 2, 1)
    host.receive("b", encode_frame([encode(Envelope(1, 1, 1, Append(1, 1, 1, 0, 0, (entry,))))]))
    assert hands.frames == []
    hands.work()
    assert [envelope.message.at for _, envelope in hands.frames] == [2]
    hands.frames.clear()
    store.failing = True
    host.receive("b", encode_frame([encode(Envelope(1, 1, 1, Append(1, 1, 2, 1, 0, (Entry(b"\x40", 3, 1),))))]))
    hands.work()
    assert hands.frames == []
    assert replica.status().state == "halted"
    assert host.failure is not None
    host.receive("b", encode_frame([encode(Envelope(1, 1, 1, Append(1, 2, 2, 1, 0)))]))
    hands.work()
    assert hands.frames == []


def test_a_group_that_is_closed_and_opened_has_promised_nothing_it_did_not_keep():
    store = MemoryStore()
    host, hands, _ = host_on(store)
    for index in (2, 3):  # the second comes while the first is being written
        entry = Entry(COMMAND + b"x", index, 1)
        host.receive("b", encode_frame([encode(Envelope(1, 1, 1, Append(1, 1, index - 1, index - 2, 0, (entry,))))]))
    host.remove(1)
    with pytest.raises(Unavailable):
        host.add(1, RegisterMachine(RegisterDisk()), number=1, voters=VOTERS)
    hands.work()
    assert hands.frames == []
    replica = host.add(1, RegisterMachine(RegisterDisk()), number=1, voters=VOTERS)
    assert replica.core.log.last == 2


@given(st.lists(st.tuples(st.sampled_from(["b", "c", "z"]), MESSAGES), max_size=30), st.booleans())
def test_whatever_comes_nothing_is_raised_and_no_promise_is_broken(said, leads):
    store = MemoryStore()
    host, hands, replica = host_on(store, voters=("a/1",) if leads else VOTERS)
    if leads:
        replica.core.election_deadline = 0.0
        host.tick()
        hands.work()
        assert replica.status().role == "leader"
    committed = []
    for node, message in said:
        host.receive(node, encode_frame([encode(Envelope(1, 1, 1, message))]))
        hands.work()
        host.tick()
        hands.work()
        core = replica.core
        now = [core.log.term_at(index) for index in range(2, core.commit + 1)]
        assert core.log.base > 1 or now[:len(committed)] == committed
        committed = now
        assert core.commit <= core.log.last


def test_a_log_that_cannot_be_read_back_halts_its_replica_alone():
    store = MemoryStore()
    logs = LogStore(store, cache_bytes=10)
    hands = Hands()
    host = Host("a", logs, hands, clock=lambda: 10.0, random=Random(1))
    for group in (1, 2):
        replica = host.add(group, RegisterMachine(RegisterDisk()), number=1, voters=("a/1",))
        replica.core.election_deadline = 0.0
    host.tick()
    hands.work()
    damaged, other = host.replicas[1], host.replicas[2]
    for at in range(1, 4):
        for replica in (damaged, other):
            replica.core.propose(command(WRITE, 1, at, at, at), lambda *told: None)
    host.turn()
    hands.jobs[0][0]()  # on its way to the disk, where a bit is flipped before it is read back
    for key, value in store.scan(entry_key(1, 0), entry_key(2, 0)):
        store._rows[key] = value[:-1] + b"?"
    hands.work()
    damaged.core.log.forget()
    damaged.core._taken = 1
    host.touched(damaged)
    host.turn()
    hands.work()
    assert (damaged.status().state, other.status().state) == ("halted", "ok")
    assert "DataCorrupted" in damaged.status().error
    host.remove(1)
    again = host.add(1, RegisterMachine(RegisterDisk()), number=1, voters=("a/1",))
    assert again.core.log.number > 1


def test_chunks_of_snapshots_leave_each_as_a_frame_of_its_own():
    host, hands, _ = host_on(MemoryStore())
    chunks = [Chunk(1, 1, 0, offset, False, b"12345678") for offset in (0, 8)]
    told = Append(1, 1, 1, 0, 0)
    for message in (chunks[0], told, chunks[1]):
        host.post("b", Envelope(1, 1, 1, message), promise=False)
    host.turn()
    assert hands.bulky == [[chunks[0]], [chunks[1]]]
    assert [envelope.message for _, envelope in hands.frames] == [told]


def test_a_group_that_is_forgotten_is_not_taken_up_before_its_rows_are_gone():
    """Or they are deleted under it: a batch of another group's is on its way meanwhile."""
    store = MemoryStore()
    host, hands, _ = host_on(store)
    host.add(2, RegisterMachine(RegisterDisk()), number=1, voters=VOTERS)
    host.turn()
    hands.work()
    for group in (1, 2):
        told = Append(1, 1, 1, 0, 0, (Entry(COMMAND + b"x", 2, 1),))
        host.receive("b", encode_frame([encode(Envelope(group, 1, 1, told))]))
        if group == 1:
            hands.work()
    host.remove(1, forget=True)
    with pytest.raises(Unavailable):
        host.add(1, RegisterMachine(RegisterDisk()), number=1, voters=VOTERS)
    hands.work()
    assert host.add(1, RegisterMachine(RegisterDisk()), number=1, voters=VOTERS).core.log.last == 1


def test_a_batch_that_failed_is_on_its_way_no_more():
    store = MemoryStore()
    host, hands, _ = host_on(store)
    store.failing = True
    host.receive("b", encode_frame([encode(Envelope(1, 1, 1, Append(1, 1, 1, 0, 0, (Entry(b"\x40", 2, 1),))))]))
    assert host.store.writing(1)
    hands.work()
    assert isinstance(host.failure, StorageError)
    assert not host.store.writing(1), "who lets go of the group would wait for ever"


class Slow(Hands):
    """Snapshots are told of later than they are made."""

    def __init__(self):
        super().__init__()
        self.made = []

    def run(self, lane, work, done):
        if lane.startswith("snapshot/"):
            self.made.append((work(), done))
        else:
            super().run(lane, work, done)


class Lead:
    """A group of one voter, which leads it, and a learner that lacks what the log has no more."""

    def __init__(self):
        self.now, self.hands = [10.0], Slow()
        settings = RaftSettings(heartbeat_s=0.02, election_s_min=0.4, election_s_max=0.8, checkpoint_bytes=1 << 9,
                                keep_entries=4, log_bytes=1 << 12, snapshot_idle_s=1.0)
        self.host = Host("a", LogStore(MemoryStore()), self.hands, clock=lambda: self.now[0], random=Random(1),
                         settings=settings)
        self.replica = self.host.add(1, RegisterMachine(RegisterDisk()), number=1, voters=("a/1",))
        while self.replica.status().role != "leader":
            self.pass_by()
        self.pass_by(300)
        assert self.replica.core.log.base > 2
        self.replica.core.change(Change(add="b/2"), lambda *told: None)
        self.host.turn()
        self.hands.work()
        self.lacks(self.replica.core.log.last)

    def pass_by(self, writes=0, lacking=0):
        """A heartbeat a write; ``lacking``: what the learner answers each with."""
        core = self.replica.core
        for at in range(writes or 1):
            if writes:
                core.propose(command(WRITE, 1, core.log.last, at % 7, 1), lambda *told: None)
            self.now[0] += 0.02
            self.host.tick()
            self.hands.work()
            if lacking:
                self.lacks(lacking)

    def told(self, message):
        self.host.receive("b", encode_frame([encode(Envelope(1, 2, 1, message))]))
        self.hands.work()

    def lacks(self, prev):
        core = self.replica.core
        self.told(Appended(core.term, core._seq, False, prev, 1))

    def hears(self, kind):
        return [envelope.message for _, envelope in self.hands.frames if isinstance(envelope.message, kind)]


def test_a_snapshot_that_takes_longer_than_the_log_is_kept_is_offered_all_the_same():
    """Else it is too old once it is made, and so is the next, for as long as there are writes."""
    lead = Lead()
    lead.pass_by(300)
    assert len(lead.hands.made) == 1
    snapshot, done = lead.hands.made.pop()
    done(snapshot, None)
    lead.hands.frames.clear()
    lead.pass_by(1)
    assert [offer.index for offer in lead.hears(Offer)] == [snapshot.position.log_index]


def test_who_is_long_at_installing_a_snapshot_is_sent_what_follows_it():
    """Nothing is fetched meanwhile; were it let go of, another would be offered, and be as long in being installed."""
    lead = Lead()
    snapshot, done = lead.hands.made.pop()
    done(snapshot, None)
    index = snapshot.position.log_index
    lead.pass_by(300, lacking=index)
    lead.hands.frames.clear()
    lead.told(Appended(lead.replica.core.term, 0, True, index, index))
    assert not lead.hands.made
    assert lead.hears(Append)[0].prev == index
    lead.pass_by(300)
    assert lead.replica.core.log.base > index, "who is not heard any more is not waited for"


def test_time_that_passes_over_idle_groups_costs_nothing_of_what_they_hold():
    lead = Lead()
    log = lead.replica.core.log
    lead.pass_by()
    whole, looked = log.size_of, []
    log.size_of = lambda start, stop: looked.append(stop - start) or whole(start, stop)
    for _ in range(50):
        lead.pass_by()
    assert sum(looked) == 0
    lead.pass_by(100)
    assert any(looked)
    lead.pass_by()
    replica = lead.replica
    assert replica._gathered == whole(replica._checkpointed + 1, replica.core.applied + 1)


def test_a_snapshot_that_is_made_for_a_group_that_was_let_go_of_is_released():
    released = []

    class Snapshot:
        position, files = Position(1, 0), ()

        def release(self):
            released.append(self)

    host, hands, replica = host_on(MemoryStore())
    replica.machine.snapshot = Snapshot
    replica.snapshot_wanted("b/1")
    host.remove(1)
    hands.work()
    assert len(released) == 1


def test_groups_are_there_once_and_with_their_replica():
    host, _, _ = host_on(MemoryStore())
    with pytest.raises(InvalidArgument):
        host.add(1, RegisterMachine(RegisterDisk()), number=1, voters=VOTERS)
    with pytest.raises(InvalidArgument):
        host.add(2, RegisterMachine(RegisterDisk()), number=7, voters=VOTERS)
