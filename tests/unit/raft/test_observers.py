"""Observers: replicas that have the log for good, and that nobody waits for."""

import pytest

from tests.unit.raft.test_rules import OF_THREE, A, B, Bench, C
from vecdb.core.errors import InvalidArgument
from vecdb.raft.membership import MAX_REPLICAS, MAX_VOTERS, Change, Configuration, promoted
from vecdb.raft.messages import Append, Appended, Gone, Offer, PreVoted, Vote, Voted
from vecdb.raft.settings import RaftSettings

O, P = "o/1", "p/1"  # noqa: E741
WITH_TWO = Configuration.of(OF_THREE.voters, [O, P])


def heard(bench: Bench, follower: str) -> int:
    """How many messages a follower is sent in two seconds of heartbeats, all of them answered by voters."""
    count = 0
    for _ in range(40):
        bench.now += 0.05
        bench.core.tick()
        for to, message in bench.flush():
            count += to == follower and isinstance(message, Append)
            if to in (B, C) and isinstance(message, Append):
                bench.core.receive(to, Appended(bench.core.term, message.seq, True, message.prev, bench.log.last))
    return count


def test_a_configuration_of_256_travels() -> None:
    many = Configuration.of(OF_THREE.voters, [f"o{number}/{number}" for number in range(MAX_REPLICAS - 3)])
    assert Configuration.from_bytes(many.to_bytes()) == many
    few = Configuration.of(OF_THREE.voters, many.learners[:100])
    assert few.to_bytes()[0] == 1, "as earlier versions read it"
    assert Configuration.from_bytes(few.to_bytes()) == few
    with pytest.raises(InvalidArgument):
        Change(add="x/1", join=False).applied_to(many)


def test_voters_are_few_whatever_the_observers() -> None:
    seven = Configuration.of([f"v{number}/1" for number in range(MAX_VOTERS)], [O])
    eighth = Change(add="v8/1").applied_to(seven)
    with pytest.raises(InvalidArgument, match="voters"):
        Change(add="v9/1").applied_to(promoted(eighth, "v8/1"))
    assert Change(add="o9/1", join=False).applied_to(promoted(eighth, "v8/1")).learners == (O, "o9/1")


def test_an_observer_counts_neither_for_commits_nor_for_reads_nor_for_leadership() -> None:
    bench = Bench(WITH_TWO).lead()
    bench.acknowledge(O, P)
    assert bench.core.commit < bench.log.last, "two observers and the leader are no majority"
    bench.acknowledge(B)
    assert bench.core.commit == bench.log.last
    bench.flush()
    bench.core.read_index(bench.answer)
    seq = next(message.seq for to, message in bench.flush() if to == B)
    for one in (O, P):
        bench.core.receive(one, Appended(bench.core.term, seq, True, 1, bench.log.last))
    assert bench.answers == [], "nor is a read confirmed by them"
    for _ in range(60):
        bench.now += 0.1
        bench.core.tick()
        for one in (O, P):
            bench.core.receive(one, Appended(bench.core.term, seq, True, 1, bench.log.last))
    assert bench.core.role != 2, "who hears observers alone leads nobody"


def test_an_observer_never_asks_for_votes_and_its_vote_counts_for_nothing() -> None:
    bench = Bench(Configuration.of([B, C], [A]))
    for _ in range(50):
        bench.now += 0.1
        bench.core.tick()
    assert not any(isinstance(message, Vote) for _, message in bench.said())
    bench = Bench(WITH_TWO)
    bench.now += 5
    bench.core.tick()
    bench.core.receive(B, PreVoted(bench.core.term + 1, True))
    bench.sync()
    for one in (O, P):
        bench.core.receive(one, Voted(bench.core.term, True))
    assert bench.core.role != 2


def test_an_observer_stays_one_however_far_it_is() -> None:
    bench = Bench(WITH_TWO).lead()
    bench.acknowledge(B, C, O, P)
    for _ in range(20):
        bench.now += 0.1
        bench.core.tick()
        bench.acknowledge(B, C, O, P)
    assert bench.core.configuration == WITH_TWO


def test_an_observer_hears_fewer_heartbeats() -> None:
    bench = Bench(WITH_TWO).lead()
    bench.acknowledge(B, C, O, P)
    bench.flush()
    every, some = heard(bench, B), heard(bench, O)
    assert every >= 18
    assert 4 <= some <= every / 2


def test_a_lost_observer_is_replaced_by_an_observer() -> None:
    bench = Bench(WITH_TWO).lead()
    bench.acknowledge(B, C)
    bench.core.receive(O, Gone(bench.core.term, 77))
    assert bench.core.configuration == Configuration.of(OF_THREE.voters, [P, "o/77"])


def test_an_observer_that_lives_may_be_replaced_in_one_step() -> None:
    """Another disk of its node: there is no vote to be lost in between."""
    bench = Bench(WITH_TWO).lead()
    bench.acknowledge(B, C, O)
    bench.core.change(Change(add="o/9", remove=O, join=False), bench.answer)
    assert bench.answers == []
    assert bench.core.configuration.learners == ("o/9", P)


def test_the_log_is_kept_for_observers_only_while_they_are_heard() -> None:
    bench = Bench(WITH_TWO, RaftSettings(election_s_max=2.0)).lead()
    bench.acknowledge(B, C, O)
    assert sorted(bench.core.lags()) == [bench.log.last] * 3
    bench.now += 3
    bench.acknowledge(B, C)
    assert sorted(bench.core.lags()) == [bench.log.last] * 2, "the observer is away"


def test_a_snapshot_is_known_to_be_for_observers_alone() -> None:
    bench = Bench(WITH_TWO).lead()
    bench.acknowledge(B)
    for one, snapshot in ((O, 7), (P, 7), (C, 8)):
        bench.core.progress[one].lacking = True
        bench.core.offer(one, Offer(bench.core.term, 1, 1, 0, snapshot, OF_THREE, ()))
    assert bench.core.for_observers(7)
    assert not bench.core.for_observers(8)
    assert not bench.core.for_observers(9)
