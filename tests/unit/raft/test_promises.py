"""A follower whose disk lost the end of its log without a word: found by its leader, and put out of the group."""

from tests.unit.raft.test_rules import OF_THREE, A, B, Bench, C, append
from vecdb.raft.messages import MEMBERS, Append, Appended, Gone, PreVote


def led() -> Bench:
    """A leader whose followers hold all of its log."""
    bench = Bench(OF_THREE).lead()
    bench.acknowledge(B, C)
    for _ in range(3):
        bench.core.propose(b"x", lambda *_: None)
    bench.flush()
    bench.sync()
    bench.acknowledge(B, C)
    assert bench.core.commit == bench.log.last
    return bench


def beat(bench: Bench) -> int:
    """The number of the next heartbeat, sent after all that was heard."""
    bench.now += 0.2
    bench.core.tick()
    numbers = {message.seq for _, message in bench.flush() if isinstance(message, Append)}
    (number,) = numbers
    return number


def refuses(bench: Bench, seq: int, prev: int, at: int) -> None:
    bench.core.receive(C, Appended(bench.core.term, seq, False, prev, at))


def test_who_does_not_hold_what_it_acknowledged_is_put_out() -> None:
    bench = led()
    match = bench.log.last
    refuses(bench, beat(bench), match, match - 2)
    assert bench.core.configuration.voters == (A, B)
    (entry,) = bench.log.read(match + 1, match + 1, 1 << 20, 10)
    assert entry.command[:1] == MEMBERS
    bench.flush()
    bench.sync()
    bench.core.receive(B, Appended(bench.core.term, 9, True, match, match + 1))
    assert bench.core.commit == match + 1, "what remains goes on"
    bench.now += 5
    bench.core.receive(C, PreVote(bench.core.term + 1, match - 2, bench.core.term))
    told = [message.removed_at for to, message in bench.said() if to == C and hasattr(message, "removed_at")]
    assert told == [match + 1], "it is told, and begins afresh"
    bench.core.receive(B, Appended(bench.core.term, 9, True, match, match + 1))
    bench.core.tick()
    (nobody,) = {to for to, _ in bench.flush() if to not in (A, B)}
    assert nobody == bench.core.configuration.joining[0] != C, "its node is sent what it can answer"
    bench.core.receive(nobody, Gone(bench.core.term, 7))
    assert bench.core.configuration.joining == ("c/7",), "and has its place back"


def test_an_answer_from_before_the_acknowledgement_proves_nothing() -> None:
    """What was sent ahead may have come first and found nothing to stand on."""
    bench = Bench(OF_THREE).lead()
    early = beat(bench)
    bench.acknowledge(B, C)
    match = bench.log.last
    refuses(bench, early, match, match - 1)
    assert bench.core.configuration == OF_THREE


def test_what_is_not_acknowledged_may_be_lacking() -> None:
    bench = led()
    match = bench.log.last
    bench.core.propose(b"x", lambda *_: None)
    bench.flush()
    refuses(bench, beat(bench), match + 1, match)
    assert bench.core.configuration == OF_THREE


def test_a_follower_keeps_its_word() -> None:
    """The other side: who holds the place never says that it does not."""
    bench = Bench(OF_THREE).follow(5)
    bench.core.receive(B, append(1, 6, 1, [], seq=7))
    bench.sync()
    assert [message.success for _, message in bench.said()] == [True]


def test_an_answer_to_what_was_sent_in_an_earlier_term_confirms_nothing() -> None:
    """Who led, and leads again: an old message of its own, found on the way, would let it read what is stale."""
    bench = Bench(OF_THREE).follow(2, term=3).lead()
    bench.acknowledge(B)
    answers = len(bench.answers)
    bench.core.read_index(bench.answer)
    bench.flush()
    other = Bench(OF_THREE).follow(2, term=bench.core.term)
    other.core.receive(C, append(bench.core.term - 1, 1, 0, [], seq=99))
    ((_, told),) = other.said()
    assert told.term == bench.core.term
    bench.core.receive(B, told)
    assert len(bench.answers) == answers
    bench.core.receive(B, Appended(bench.core.term, 99, True, 1, bench.log.last))
    assert len(bench.answers) == answers + 1


def test_a_snapshot_that_was_taken_is_told_without_a_number() -> None:
    """A refusal without one is of an earlier term; this is of no message, and confirms nothing but itself."""
    bench = Bench(OF_THREE).lead()
    bench.core.read_index(bench.answer)
    bench.flush()
    bench.core.receive(B, Appended(bench.core.term, 0, True, bench.log.last, bench.log.last))
    assert bench.core.progress[B].match == bench.log.last == bench.core.commit
    assert not bench.answers


def test_news_of_a_commit_is_acknowledged_once_and_nothing_else_is_left_unanswered() -> None:
    bench = Bench()
    for message, answered in (
            (append(1, 1, 0, [(2, 1), (3, 1)], seq=5), True),
            (append(1, 3, 1, [], commit=3, seq=5), False),  # who leads had the answer, or asks with the next heartbeat
            (append(1, 1, 0, [(2, 1), (3, 1)], commit=3, seq=5), True),  # it did not, and sends the entries again
            (append(1, 2, 1, [], commit=3, seq=6), True),
            (append(1, 3, 1, [], commit=3, seq=6), True),
            (append(1, 9, 1, [], commit=3, seq=6), True),
            (append(1, 9, 1, [], commit=3, seq=6), True)):  # a refusal is told as often as it is asked for
        bench.core.receive(B, message)
        assert len(bench.said()) == answered
        bench.sync()
    assert bench.core.commit == 3
    bench.core.receive(C, append(2, 3, 1, [], seq=6))
    assert bench.said() == [(C, Appended(2, 6, True, 3, 3))], "another leader has heard nothing yet"
    bench.sync()
    again = Bench(store=bench.store)
    again.core.receive(C, append(2, 3, 1, [], seq=6))
    assert again.said() == [(C, Appended(2, 6, True, 3, 3))], "nor is it remembered for long"
