"""What followers hear of a commit: with the next command, or a moment later."""

from tests.unit.raft.test_rules import B, Bench, C
from vecdb.raft.messages import Append


def commits(bench):
    return [(to, message.commit, len(message.entries)) for to, message in bench.flush() if isinstance(message, Append)]


def leading():
    bench = Bench().lead()
    bench.acknowledge(B, C)
    bench.core.tell_news()
    bench.flush()
    return bench


def committed(bench):
    bench.core.propose(b"x", bench.answer)
    bench.flush()
    bench.sync()
    bench.acknowledge(B, C)
    return bench.core.commit


def test_the_next_command_tells_of_the_last_commit():
    bench = leading()
    last = committed(bench)
    assert commits(bench) == []
    assert bench.core.owes_news
    bench.core.propose(b"y", bench.answer)
    assert commits(bench) == [(B, last, 1), (C, last, 1)]
    assert not bench.core.owes_news
    bench.core.tell_news()
    assert commits(bench) == [], "they know"


def test_where_none_follows_they_are_told_in_a_moment_and_once():
    bench = leading()
    last = committed(bench)
    assert commits(bench) == []
    bench.core.tell_news()
    assert commits(bench) == [(B, last, 0), (C, last, 0)]
    assert not bench.core.owes_news
    bench.core.tell_news()
    assert commits(bench) == []


def test_a_heartbeat_tells_it_too():
    bench = leading()
    last = committed(bench)
    bench.now += bench.core.settings.heartbeat_s
    bench.core.tick()
    assert commits(bench) == [(B, last, 0), (C, last, 0)]
    assert not bench.core.owes_news


def test_who_does_not_lead_any_more_owes_nothing():
    bench = leading()
    committed(bench)
    bench.flush()
    assert bench.core.owes_news
    bench.core.follow(bench.core.term + 1, None)
    assert commits(bench) == []
    assert not bench.core.owes_news
