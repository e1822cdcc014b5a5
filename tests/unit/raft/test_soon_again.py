"""Elections that are not waited a whole timeout for."""

from math import inf

from tests.unit.raft.test_rules import OF_FIVE, OF_THREE, A, B, Bench, C, D, E, append
from vecdb.raft.core import AGAIN
from vecdb.raft.membership import Configuration
from vecdb.raft.messages import PreVote, PreVoted, Vote, Voted
from vecdb.raft.stock import CANDIDATE, FOLLOWER, LEADER


def soonest(bench):
    return bench.core.settings.again_s[1]


def waits(bench):
    return bench.core.election_deadline - bench.now


def silent(bench):
    """The leader falls silent until this one asks."""
    while waits(bench) > 0:
        bench.now = bench.core.election_deadline
    bench.core.tick()
    assert waits(bench) >= bench.core.settings.election_s_min, "before anybody has said anything"
    return bench


def candidate(bench):
    term = bench.core.term + 1
    bench.core.receive(C, PreVoted(term, True))
    bench.sync()
    assert bench.core.role == CANDIDATE
    assert waits(bench) > soonest(bench)
    return term


def test_two_who_were_candidates_at_once_do_not_wait_a_timeout():
    bench = silent(Bench().follow(3))
    term = candidate(bench)
    bench.core.receive(C, Voted(term, False))
    assert waits(bench) <= soonest(bench)
    bench.now = bench.core.election_deadline
    bench.said()
    bench.core.tick()
    assert {type(message) for _, message in bench.said()} == {PreVote}, "asked anew before a term is used up"


def test_a_candidate_that_may_still_win_waits():
    bench = Bench(OF_FIVE).follow(3)
    silent(bench)
    term = bench.core.term + 1
    for voter in (C, D):
        bench.core.receive(voter, PreVoted(term, True))
    bench.sync()
    bench.core.receive(C, Voted(term, False))
    assert waits(bench) > soonest(bench), "two others, besides who led, may yet vote for it"
    bench.core.receive(D, Voted(term, False))
    assert waits(bench) <= soonest(bench)


def test_a_candidate_waits_for_its_own_disk_before_it_gives_up():
    bench = silent(Bench().follow(3))
    term = bench.core.term + 1
    bench.core.receive(C, PreVoted(bench.core.term, False))
    bench.core.receive(B, PreVoted(term, True))
    bench.now += bench.core.settings.election_s_min  # nobody was asked: its own vote is not on the disk
    bench.core.tick()
    assert bench.core.role == CANDIDATE
    bench.sync()
    assert waits(bench) >= bench.core.settings.election_s_min
    bench.core.receive(C, Voted(term, True))
    assert bench.core.role == LEADER


def test_a_round_is_one_of_those_that_are_soon_however_many_refuse():
    bench = silent(Bench(OF_FIVE).follow(3))
    for _ in range(AGAIN):
        for voter in (C, D, E):
            bench.core.receive(voter, PreVoted(bench.core.term, False))
        assert waits(bench) <= soonest(bench)
        bench.now = bench.core.election_deadline
        bench.core.tick()
    bench.core.receive(C, PreVoted(bench.core.term, False))
    bench.core.receive(D, PreVoted(bench.core.term, False))
    assert waits(bench) > soonest(bench)


def test_a_refusal_of_another_term_says_nothing():
    bench = silent(Bench().follow(3))
    term = candidate(bench)
    bench.core.receive(C, Voted(term - 1, False))
    assert waits(bench) > soonest(bench)


def test_who_was_asked_while_it_still_heard_the_leader_is_asked_again_soon():
    bench = silent(Bench().follow(3))
    bench.core.receive(C, PreVoted(bench.core.term, False))
    assert waits(bench) <= soonest(bench)


def test_who_has_the_longer_log_asks_soon_itself():
    bench = Bench().follow(3)
    bench.core.election_deadline = bench.now + 100
    bench.core.receive(C, PreVote(2, 2, 1))
    assert waits(bench) == 100, "a leader is heard"
    bench.now += bench.core.settings.election_s_min
    bench.core.receive(C, PreVote(2, 2, 1))
    assert waits(bench) <= soonest(bench)
    bench.core.election_deadline = bench.now + 100
    bench.core.receive(C, PreVote(2, bench.log.last, 1))
    assert waits(bench) == 100, "who asks may win"


def test_who_is_cut_off_does_not_go_on_asking_soon():
    bench = silent(Bench().follow(3))
    for _ in range(3 * AGAIN):
        bench.core.receive(C, PreVoted(bench.core.term, False))
        bench.now = bench.core.election_deadline
        bench.core.tick()
    bench.core.receive(C, PreVoted(bench.core.term, False))
    assert waits(bench) >= bench.core.settings.election_s_min
    bench.core.receive(B, append(1, 4, 1, []))
    silent(bench)
    bench.core.receive(C, PreVoted(bench.core.term, False))
    assert waits(bench) <= soonest(bench), "a leader was heard meanwhile"


def test_that_the_leaders_process_is_gone_brings_an_election_soon():
    bench = Bench().follow(3)
    bench.core.gone("c")
    bench.core.gone("bb")
    assert waits(bench) >= bench.core.settings.election_s_min, "it does not lead"
    bench.core.receive(C, PreVote(2, 9, 9))
    bench.core.gone("b")
    assert 0 < waits(bench) <= soonest(bench)
    bench.core.receive(C, PreVote(2, 9, 9))
    bench.core.receive(C, Vote(2, 9, 9))
    bench.sync()
    assert [message for _, message in bench.said()] == [PreVoted(1, False), PreVoted(2, True), Voted(2, True)]


def test_a_leader_that_was_thought_gone_and_speaks_is_followed():
    bench = Bench().follow(3)
    bench.core.gone("b")
    bench.core.receive(B, append(1, 4, 1, [(5, 1)]))
    assert waits(bench) >= bench.core.settings.election_s_min
    bench.core.receive(C, PreVote(2, 9, 9))
    assert bench.core.leader == B
    assert bench.said()[-1] == (C, PreVoted(1, False))


def test_a_leader_does_not_mind_who_is_gone():
    bench = Bench().lead()
    before = bench.core.election_deadline
    for node in ("a", "b", "c"):
        bench.core.gone(node)
    assert (bench.core.role, bench.core.election_deadline) == (LEADER, before)


def test_who_is_no_voter_is_in_no_hurry():
    bench = Bench(Configuration((B, C), (A,))).follow(3)
    bench.core.gone("b")
    assert waits(bench) >= bench.core.settings.election_s_min
    assert bench.core.leader_seen == -inf
    assert bench.core.role == FOLLOWER


def test_a_term_that_was_missed_is_caught_up_with_soon():
    bench = silent(Bench(OF_THREE).follow(3))
    bench.core.receive(C, PreVoted(7, False))
    assert bench.core.term == 7
    assert waits(bench) <= soonest(bench)
