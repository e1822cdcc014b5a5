"""One replica against hand-made messages: each rule of the paper by itself."""

from random import Random

from vecdb.core.errors import InvalidArgument, LimitExceeded, NotLeader, OutcomeUnknown, Overloaded, Unavailable
from vecdb.raft.core import RaftCore
from vecdb.raft.log import LogStore
from vecdb.raft.membership import Change, Configuration
from vecdb.raft.messages import (
    COMMAND,
    MEMBERS,
    PROMISES,
    Append,
    Appended,
    Entry,
    Gone,
    Offer,
    PreVote,
    PreVoted,
    TimeoutNow,
    Vote,
    Voted,
)
from vecdb.raft.settings import RaftSettings
from vecdb.raft.stock import FOLLOWER, LEADER
from vecdb.testing.disk import MemoryStore

A, B, C, D, E = "a/1", "b/1", "c/1", "d/1", "e/1"
OF_THREE = Configuration.of([A, B, C])
OF_FIVE = Configuration.of([A, B, C, D, E])


class Bench:
    """Replica ``a/1`` with its messages caught."""

    def __init__(self, configuration=OF_THREE, settings=None, store=None):
        self.now = 0.0
        self.store = store or LogStore(MemoryStore())
        self.log = self.store.open(1) or self.store.create(1, 1, configuration)
        self.sent, self.wanted, self.answers = [], [], []
        self.core = RaftCore(A, self.log, self, applied=0, clock=lambda: self.now, random=Random(1),
                             settings=settings or RaftSettings())
        self.sync()

    def send(self, to, message):
        self.sent.append((to, message))

    def touched(self):
        pass

    def offered(self, sender, offer):
        self.wanted.append(offer)

    def snapshot_wanted(self, follower):
        self.wanted.append(follower)

    def tell(self, level, event, **fields):
        pass

    def answer(self, index, result, error):
        self.answers.append(error if error is not None else (index, result))

    def sync(self):
        batch = self.store.take()
        batch.write()
        self.store.done(batch)
        self.core.synced()

    def flush(self):
        self.core.flush()
        return self.said()

    def said(self):
        said, self.sent = self.sent, []
        return said

    def entries(self):
        log = self.log
        return [(entry.index, entry.term) for entry in log.read(log.base + 1, log.last, 1 << 30, 1 << 20)]

    def follow(self, count, term=1, leader=B):
        """Take ``count`` entries from a leader."""
        self.core.receive(leader, append(term, 1, 0, [(index, term) for index in range(2, 2 + count)]))
        self.sync()
        self.said()
        return self

    def lead(self, voters=(B, C)):
        """Win the next term."""
        self.now += 5
        self.core.tick()
        term = self.core.term + 1
        for voter in voters:
            self.core.receive(voter, PreVoted(term, True))
        self.sync()
        for voter in voters:
            self.core.receive(voter, Voted(term, True))
        assert self.core.role == LEADER
        self.flush()
        self.sync()
        return self

    def acknowledge(self, *followers, at=None):
        for one in followers:
            self.core.receive(one, Appended(self.core.term, 1, True, 1, at or self.log.last))

    def apply(self):
        entries = self.core.to_apply()
        self.core.applied_to(entries, [entry.index for entry in entries])


def append(term, prev, prev_term, places, commit=0, seq=1):
    return Append(term, seq, prev, prev_term, commit,
                  tuple(Entry(COMMAND + b"x", index, of) for index, of in places))


def test_a_batch_that_comes_again_deletes_nothing_behind_it():
    bench = Bench().follow(6)
    bench.core.receive(B, append(1, 1, 0, [(2, 1), (3, 1)]))
    assert bench.entries() == [(index, 1) for index in range(2, 8)]
    assert bench.said() == [(B, Appended(1, 1, True, 1, 3))]


def test_a_conflict_deletes_what_follows_it():
    bench = Bench().follow(6)
    bench.core.receive(C, append(2, 3, 1, [(4, 2)]))
    assert bench.entries() == [(2, 1), (3, 1), (4, 2)]
    assert bench.said() == [(C, Appended(2, 1, True, 3, 4))]


def test_what_is_committed_is_never_deleted():
    bench = Bench()
    bench.core.receive(B, append(1, 1, 0, [(2, 1), (3, 1)], commit=3))
    bench.said()
    bench.core.receive(C, append(2, 1, 0, [(2, 2)]))
    assert bench.entries() == [(2, 1), (3, 1)]
    assert bench.said() == []


def test_a_gap_is_refused_with_the_last_place_that_may_match():
    bench = Bench().follow(3)
    bench.core.receive(B, append(1, 9, 1, [(10, 1)]))
    assert bench.said() == [(B, Appended(1, 1, False, 9, 4))]
    bench.core.receive(C, append(3, 4, 2, [(5, 3)]))
    assert bench.said() == [(C, Appended(3, 1, False, 4, 1))], "the whole of a wrong term is passed over"


def test_a_leader_of_the_past_is_told():
    bench = Bench().follow(1, term=3)
    bench.core.receive(C, append(2, 1, 0, []))
    assert bench.said() == [(C, Appended(3, 0, False, 0, 0))]
    assert bench.core.leader == B


def test_a_commit_goes_no_further_than_what_is_known_to_match():
    bench = Bench().follow(5)
    bench.core.receive(B, append(1, 2, 1, [], commit=6))
    assert bench.core.commit == 2


def test_acknowledgements_of_another_term_count_for_nothing():
    bench = Bench(OF_FIVE).lead((B, C))
    bench.core.receive(B, Appended(bench.core.term - 1, 1, True, 1, bench.log.last))
    bench.acknowledge(C)
    assert bench.core.commit == 1
    bench.core.receive(B, Appended(bench.core.term + 1, 1, True, 1, bench.log.last))
    assert bench.core.role == FOLLOWER


def test_what_matches_is_never_sent_again():
    bench = Bench().lead()
    bench.acknowledge(B)
    for _ in range(3):
        bench.core.propose(b"x", bench.answer)
    bench.flush()
    bench.acknowledge(B)
    bench.core.receive(B, Appended(bench.core.term, 1, False, 2, 1))  # overtaken by the acknowledgements
    assert bench.core.progress[B].next == bench.log.last + 1
    assert [message for to, message in bench.flush() if to == B and message.entries] == []


def test_a_match_beyond_the_log_is_not_believed():
    bench = Bench().lead()
    bench.acknowledge(B, at=bench.log.last + 5)
    assert bench.core.commit == 1


def test_a_leader_counts_itself_only_for_what_is_on_its_disk():
    bench = Bench().lead()
    bench.acknowledge(B)
    bench.core.propose(b"x", bench.answer)
    bench.flush()
    bench.acknowledge(B)
    assert bench.core.commit == bench.log.last - 1
    bench.sync()
    assert bench.core.commit == bench.log.last


def test_entries_of_earlier_terms_are_committed_only_by_one_of_this():
    bench = Bench(OF_FIVE).follow(2, term=2, leader=E).lead((B, C))  # figure 8
    bench.acknowledge(B, C, at=3)
    assert bench.core.commit == 1
    bench.acknowledge(B, C)
    assert bench.core.commit == bench.log.last == 4


def test_one_vote_a_term_and_the_same_again():
    bench = Bench()
    bench.core.receive(B, Vote(1, 1, 0))
    bench.core.receive(C, Vote(1, 9, 0))
    bench.core.receive(B, Vote(1, 1, 0))
    assert bench.said() == [(B, Voted(1, True)), (C, Voted(1, False)), (B, Voted(1, True))]
    bench.sync()
    again = Bench(store=bench.store)
    again.core.receive(C, Vote(1, 9, 0))
    assert again.said() == [(C, Voted(1, False))], "a restart forgets no vote"


def test_votes_only_for_who_has_at_least_as_much():
    bench = Bench().follow(3, term=2)
    bench.now += 5
    for ask, granted in ((Vote(3, 9, 1), False), (Vote(4, 3, 2), False), (Vote(5, 4, 2), True), (Vote(6, 2, 3), True)):
        bench.core.receive(C, ask)
        assert bench.said() == [(C, Voted(ask.term, granted))]


def test_a_vote_counts_once_and_a_stranger_for_nothing():
    bench = Bench(OF_FIVE)
    bench.now += 5
    bench.core.tick()
    for voter in (B, C):
        bench.core.receive(voter, PreVoted(1, True))
    bench.sync()
    for voter in (B, B, B, "z/1", "b/2"):
        bench.core.receive(voter, Voted(1, True))
    assert bench.core.role != LEADER
    bench.core.receive(C, Voted(1, True))
    assert bench.core.role == LEADER


def test_its_own_vote_counts_once_it_is_on_disk():
    bench = Bench(Configuration.of([A]))
    bench.now += 5
    bench.core.tick()
    assert bench.core.role != LEADER
    bench.sync()
    assert bench.core.role == LEADER


def test_nobody_is_asked_to_vote_before_most_would():
    bench = Bench()
    for _ in range(20):
        bench.now += 5
        bench.core.tick()
    assert bench.core.term == 0
    assert {type(message) for _, message in bench.said()} == {PreVote}


def test_while_a_leader_is_heard_no_vote_and_no_later_term():
    bench = Bench().follow(1)
    bench.core.receive(C, PreVote(2, 9, 9))
    bench.core.receive(C, Vote(7, 9, 9))
    assert bench.core.term == 1
    assert bench.said() == [(C, PreVoted(1, False))]
    bench.core.receive(C, Vote(7, 9, 9, True))
    assert bench.said() == [(C, Voted(7, True))], "who leads wants it so"


def test_a_leader_nobody_answers_steps_down():
    bench = Bench().lead()
    bench.core.propose(b"x", bench.answer)
    for _ in range(60):
        bench.now += 0.1
        bench.core.tick()
    assert bench.core.role == FOLLOWER
    assert isinstance(bench.answers[0], OutcomeUnknown)
    assert len(bench.answers) == 1


def test_callers_are_told_once_and_only_when_it_is_applied():
    bench = Bench().lead()
    bench.acknowledge(B)
    bench.core.propose(b"x", bench.answer)
    bench.sync()
    bench.acknowledge(B, C)
    assert bench.answers == []
    bench.apply()
    bench.apply()
    assert bench.answers == [(bench.log.last, bench.log.last)]


def test_followers_and_the_too_large_and_the_too_many_are_refused():
    bench = Bench(settings=RaftSettings(uncommitted_bytes=1000, command_bytes=2000)).follow(1)
    bench.core.propose(b"x", bench.answer)
    assert isinstance(bench.answers[0], NotLeader)
    assert bench.answers[0].leader == B
    bench.lead()
    bench.acknowledge(C)
    for size in (2001, 0, 1500, 1):
        bench.core.propose(b"x" * size, bench.answer)
    assert [type(error) for error in bench.answers[1:]] == [LimitExceeded, LimitExceeded, Overloaded]
    bench.sync()
    bench.acknowledge(C)
    bench.core.propose(b"x" * 900, bench.answer)
    assert len(bench.answers) == 4, "what is committed makes room"


def test_a_window_bounds_what_is_on_its_way():
    bench = Bench(settings=RaftSettings(batch_bytes=100, window_bytes=300)).lead()
    bench.acknowledge(B)
    bench.flush()
    for _ in range(20):
        bench.core.propose(b"x" * 99, bench.answer)
    first = [message for to, message in bench.flush() if to == B and message.entries]
    assert [len(message.entries) for message in first] == [1, 1, 1]
    bench.acknowledge(B, at=first[0].entries[-1].index)
    assert len([message for to, message in bench.flush() if to == B and message.entries]) == 1


def test_reads_wait_for_a_majority_that_answers_after_them():
    bench = Bench().lead()
    bench.acknowledge(B)
    bench.core.read_index(bench.answer)
    asked = [message.seq for to, message in bench.flush() if to == B]
    assert len(asked) == 1
    seq = asked[0]
    bench.core.receive(B, Appended(bench.core.term, seq - 1, True, 1, bench.log.last))
    assert bench.answers == []
    bench.core.receive(B, Appended(bench.core.term, seq, True, 1, bench.log.last))
    assert bench.answers == [(bench.log.last, None)]


def test_reads_wait_for_something_of_this_term():
    bench = Bench().lead()
    bench.core.read_index(bench.answer)
    for to, message in bench.flush():
        bench.core.receive(to, Appended(bench.core.term, message.seq, False, message.prev, message.prev))
    assert bench.answers == []
    bench.acknowledge(B)
    assert bench.answers == [(bench.log.last, None)]


def test_one_change_at_a_time_and_none_before_the_first_commit():
    bench = Bench().lead()
    bench.core.change(Change(add=D), bench.answer)
    assert isinstance(bench.answers.pop(), Unavailable)
    bench.acknowledge(B)
    bench.core.change(Change(add=D), bench.answer)
    assert bench.core.configuration.joining == (D,), "in force when it is appended"
    bench.core.change(Change(add=E), bench.answer)
    assert isinstance(bench.answers.pop(), Unavailable)
    for bad in (Change(add=B), Change(remove=E), Change(), Change(add="b/2")):
        bench.core.change(bad, bench.answer)
        assert isinstance(bench.answers.pop(), InvalidArgument)


def test_learners_count_only_once_they_have_caught_up():
    bench = Bench().lead()
    bench.acknowledge(B)
    bench.core.change(Change(add=D), bench.answer)
    bench.sync()
    bench.acknowledge(D)
    assert bench.core.commit == bench.log.last - 1, "not by a learner"
    bench.acknowledge(B)
    bench.core.tick()
    assert bench.core.configuration == Configuration.of([A, B, C, D])
    bench.sync()
    bench.acknowledge(B)
    assert bench.core.commit == bench.log.last - 1, "two of four are none"


def test_a_change_that_is_truncated_was_never_made():
    bench = Bench().follow(1)
    after = Configuration.of([A, B, C, D])
    bench.core.receive(B, Append(1, 1, 2, 1, 0, (Entry(MEMBERS + after.to_bytes(), 3, 1),)))
    assert bench.core.configuration == after
    bench.core.receive(C, append(2, 2, 1, [(3, 2)]))
    assert bench.core.configuration == OF_THREE
    bench.core.receive(C, append(2, 3, 2, [(4, 2)], commit=4))
    bench.sync()
    bench.apply()
    bench.core.truncate_to(3)
    bench.sync()
    assert Bench(store=bench.store).core.configuration == OF_THREE


def test_who_is_no_voter_asks_for_no_votes():
    for configuration in (Configuration(), Configuration.of([B, C], [A]), Configuration.of([B, C], [], [A])):
        bench = Bench(configuration)
        bench.now += 50
        bench.core.tick()
        bench.core.receive(B, append(1, 1, 0, []))
        bench.core.receive(B, TimeoutNow(1))
        assert not [message for _, message in bench.said() if isinstance(message, Vote)]


def test_who_was_removed_is_told_by_those_who_know():
    bench = Bench().lead()
    bench.acknowledge(B)
    bench.core.change(Change(remove=C), bench.answer)
    bench.sync()
    bench.acknowledge(B)
    bench.said()
    bench.core.receive(C, PreVote(9, 99, 99))
    assert bench.said() == [(C, PreVoted(1, False, bench.log.last))]
    other = Bench()
    other.core.receive(B, PreVoted(1, False, 3))
    assert other.core.removed


def test_a_leader_that_is_to_leave_hands_over():
    bench = Bench().lead()
    bench.acknowledge(B)
    bench.said()
    bench.core.change(Change(remove=A), bench.answer)
    assert bench.said() == [(B, TimeoutNow(1))]
    bench.core.propose(b"x", bench.answer)
    assert isinstance(bench.answers[-1], NotLeader)
    bench.core.receive(B, append(2, bench.log.last, 1, []))
    assert [type(error) for error in bench.answers] == [NotLeader, NotLeader]
    assert bench.answers[1].leader == B


def test_a_hand_over_that_fails_ends():
    bench = Bench().lead()
    bench.acknowledge(B)
    bench.core.transfer(C, bench.answer)
    for _ in range(50):
        bench.now += 0.1
        bench.core.tick()
        bench.acknowledge(B)
    assert [type(error) for error in bench.answers] == [Unavailable]
    bench.core.propose(b"x", bench.answer)
    assert len(bench.answers) == 1, "it leads on"


def test_who_is_handed_the_leadership_asks_for_it_at_once():
    bench = Bench().follow(1)
    bench.core.receive(C, TimeoutNow(1))
    assert bench.said() == [], "only who leads may"
    bench.core.receive(B, TimeoutNow(1))
    assert bench.said() == [(B, Vote(2, 2, 1, True)), (C, Vote(2, 2, 1, True))]


def test_a_replica_that_lost_its_log_is_replaced_in_one_step():
    bench = Bench().lead()
    bench.acknowledge(B)
    bench.core.receive(C, Gone(1, 70_000))
    assert bench.core.configuration == Configuration.of([A, B], [], ["c/70000"])
    bench.core.receive(C, Gone(1, 70_001))
    assert bench.core.configuration == Configuration.of([A, B], [], ["c/70000"])


def test_a_follower_that_lacks_what_is_gone_is_offered_a_snapshot():
    bench = Bench().lead()
    bench.acknowledge(B)
    for _ in range(10):
        bench.core.propose(b"x", bench.answer)
    bench.sync()
    bench.acknowledge(B)
    bench.apply()
    bench.core.truncate_to(bench.log.last - 2)
    bench.flush()
    assert bench.wanted == [C]


def test_promises_are_what_speaks_of_the_disk():
    assert set(PROMISES) == {Appended, Vote, Voted}


def test_a_change_that_would_leave_no_majority_alive_is_refused():
    bench = Bench().lead()
    bench.acknowledge(B)
    bench.core.change(Change(remove=B), bench.answer)
    assert isinstance(bench.answers.pop(), Unavailable), "c/1 was never heard"
    bench.core.change(Change(add=D, remove=B), bench.answer)
    assert isinstance(bench.answers.pop(), InvalidArgument), "b/1 lives: first the new one, then away with the old"
    bench.core.change(Change(remove=C), bench.answer)
    assert bench.core.configuration == Configuration.of([A, B])


def test_a_snapshot_that_is_held_no_more_is_not_offered_again():
    bench = Bench().lead()
    bench.acknowledge(B)
    for _ in range(10):
        bench.core.propose(b"x", bench.answer)
    bench.sync()
    bench.acknowledge(B)
    bench.apply()
    bench.core.truncate_to(bench.log.last - 2)
    bench.flush()
    bench.core.offer(C, Offer(1, 0, bench.log.base, 1, 77, OF_THREE, ()))
    assert [message.snapshot for to, message in bench.flush() if isinstance(message, Offer)] == [77]
    bench.core.withdraw(77)
    bench.wanted.clear()
    bench.now += 1
    bench.core.tick()
    assert not [message for to, message in bench.flush() if isinstance(message, Offer)]
    assert bench.wanted == [C]
