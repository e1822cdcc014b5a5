"""How long the logs' disk takes, and a leader that gives way to others when it hangs."""

from random import Random

from tests.unit.raft.test_host import VOTERS, Hands
from vecdb.raft.host import Host
from vecdb.raft.log import LogStore
from vecdb.raft.messages import Append, Appended, Envelope, Message, PreVoted, TimeoutNow, Voted, encode, encode_frame
from vecdb.raft.syncing import SyncTimes
from vecdb.testing.disk import MemoryStore
from vecdb.testing.register import WRITE, RegisterDisk, RegisterMachine, command


def test_the_slowest_of_the_last_minute_or_two() -> None:
    times = SyncTimes()
    assert (times.waiting_s(5.0), times.slowest_s(5.0)) == (0.0, 0.0)
    for begun, took in ((1_000.0, 0.5), (1_001.0, 0.2), (1_050.0, 0.1)):
        times.begun(begun)
        times.ended(begun + took)
    assert (times.count, round(times.total_s, 3), times.slowest_s(1_055.0)) == (3, 0.8, 0.5)
    times.begun(1_065.0)
    assert (times.waiting_s(1_068.0), times.slowest_s(1_068.0)) == (3.0, 3.0)
    times.ended(1_068.0)
    assert times.slowest_s(1_100.0) == 3.0
    assert times.slowest_s(1_500.0) == 0.0, "that was long ago"


class Bench:
    """Replica a/1 of three, which leads; the others are what is said for them."""

    def __init__(self) -> None:
        self.now = 10.0
        self.told: list[str] = []
        self.hands = Hands()
        self.host = Host("a", LogStore(MemoryStore()), self.hands, clock=lambda: self.now, random=Random(1),
                         tell=lambda level, event, **fields: self.told.append(event))
        self.replica = self.host.add(1, RegisterMachine(RegisterDisk()), number=1, voters=VOTERS)
        self.host.turn()
        self.hands.work()
        self.now += 10.0
        self.host.tick()
        for said in (PreVoted(1, True), Voted(1, True)):
            self.hands.work()
            self.say("b", said)
        self.hands.work()
        assert self.replica.status().role == "leader"

    def say(self, node: str, message: Message) -> None:
        self.host.receive(node, encode_frame([encode(Envelope(1, 1, 1, message))]))

    def passes(self, seconds: float) -> None:
        """The followers have on their disks whatever the leader has sent."""
        until, last = self.now + seconds, self.replica.core.log.last
        while self.now < until:
            self.now += 0.05
            heard = [envelope.message for _, envelope in self.hands.frames if isinstance(envelope.message, Append)]
            for node in ("b", "c"):
                self.say(node, Appended(1, heard[-1].seq, True, last - 1, last))
            self.host.tick()

    def handed(self) -> list[str]:
        return [node for node, envelope in self.hands.frames if isinstance(envelope.message, TimeoutNow)]


def test_a_leader_whose_disk_hangs_hands_over() -> None:
    bench = Bench()
    bench.passes(5.0)
    bench.replica.core.propose(command(WRITE, 1, 1, 1, 7), lambda *_: None)
    bench.host.turn()
    bench.passes(1.5)
    assert (bench.handed(), bench.told.count("raft_disk_hangs")) == ([], 0), "a disk may be slow"
    bench.passes(1.0)
    assert (len(bench.handed()), bench.told.count("raft_disk_hangs")) == (1, 1)
    assert bench.replica.core.commit == bench.replica.core.log.last, "the others have it"
    assert bench.replica.status().applied < bench.replica.core.commit, "and this one has not"
    bench.passes(5.0)
    assert len(bench.handed()) in (2, 3), "again and again, as long as it leads"
    before = len(bench.handed())
    bench.hands.work()
    bench.passes(10.0)
    assert len(bench.handed()) == before, "the disk is back"


def test_who_leads_alone_has_nobody_to_give_way_to() -> None:
    bench = Bench()
    bench.host.remove(1)
    alone = bench.host.add(2, RegisterMachine(RegisterDisk()), number=1, voters=("a/1",))
    bench.now += 10.0
    bench.host.tick()
    bench.hands.work()
    assert alone.status().role == "leader"
    alone.core.propose(command(WRITE, 1, 1, 1, 7), lambda *_: None)
    bench.host.turn()
    bench.now += 60.0
    bench.host.tick()
    assert "raft_disk_hangs" not in bench.told
    assert alone.status().role == "leader"
