"""A replica that was made a learner by a change that got lost: it asks after itself, and those who know tell it."""

import pytest

from tests.unit.raft.test_rules import Bench
from vecdb.raft.membership import Configuration
from vecdb.raft.messages import PreVote, PreVoted
from vecdb.raft.stock import FOLLOWER

A, B, C, D = "a/1", "b/1", "c/1", "d/1"


def silent(bench: Bench) -> list[tuple[str, object]]:
    """What it says when nobody has spoken to it for the longest election timeout."""
    bench.said()
    bench.now += 5.0
    bench.core.tick()
    return bench.said()


@pytest.mark.parametrize("kind", ["learners", "joining"])
def test_a_learner_that_no_leader_speaks_to_asks_the_voters(kind: str) -> None:
    bench = Bench(Configuration(voters=(B, C), **{kind: (A,)}))
    assert silent(bench) == [(to, PreVote(1, 1, bench.log.last_term)) for to in (B, C)]
    for voter in (B, C):
        bench.core.receive(voter, PreVoted(1, True, 0))
    assert bench.core.role == FOLLOWER, "it has no vote to win"
    assert bench.core.term == 0
    assert not bench.core.removed


def test_who_is_no_member_asks_nobody() -> None:
    for configuration in (Configuration(), Configuration(voters=(B, C))):
        assert silent(Bench(configuration)) == []


def test_it_leaves_only_if_what_is_committed_goes_beyond_the_change_that_made_it_one() -> None:
    bench = Bench(Configuration(voters=(B, C), joining=(A,)))
    silent(bench)
    bench.core.receive(B, PreVoted(3, False, bench.log.base))
    assert not bench.core.removed, "the other may not have heard of the change yet"
    bench.core.receive(C, PreVoted(3, False, bench.log.base + 1))
    assert bench.core.removed


def test_a_voter_says_up_to_where_it_knows_that_the_other_is_no_member() -> None:
    bench = Bench().lead()
    bench.acknowledge(B)
    for command in (b"x", b"y"):
        bench.core.propose(command, bench.answer)
    bench.flush()
    bench.sync()
    bench.core.receive(D, PreVote(9, 99, 99))
    bench.core.receive(B, PreVote(9, 99, 99))
    before = {to: said.removed_at for to, said in bench.said() if isinstance(said, PreVoted)}
    assert before == {D: bench.core.commit, B: 0}
    bench.acknowledge(B)
    bench.said()
    bench.core.receive(D, PreVote(9, 99, 99))
    ((_, said),) = bench.said()
    assert said.removed_at == bench.core.commit == bench.log.last > before[D]
