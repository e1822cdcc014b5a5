"""What may happen all the time is told once a minute."""

from vecdb.rpc import seldom
from vecdb.rpc.seldom import Seldom


def test_each_kind_of_each_peer_is_told_once_in_a_while_and_then_how_often_it_came():
    told, now = [], [100.0]
    tell = Seldom(lambda level, event, **fields: told.append((level, event, fields)), 60.0, lambda: now[0])
    for _ in range(5):
        tell("warning", "refused", "cluster", "n1", why="x")
    assert tell("warning", "refused", "cluster", "n2")
    assert tell("error", "refused", "name", "n1")
    assert told == [("warning", "refused", {"kind": "cluster", "peer": "n1", "why": "x"}),
                    ("warning", "refused", {"kind": "cluster", "peer": "n2"}),
                    ("error", "refused", {"kind": "name", "peer": "n1"})]
    now[0] += 59.9
    assert not tell("warning", "refused", "cluster", "n1")
    now[0] += 0.2
    assert tell("warning", "refused", "cluster", "n1", why="y")
    assert told[-1][2] == {"kind": "cluster", "peer": "n1", "times": 6, "why": "y"}
    now[0] += 61
    assert tell("warning", "refused", "cluster", "n1")
    assert "times" not in told[-1][2]


def test_a_flood_of_peers_is_not_remembered(monkeypatch):
    monkeypatch.setattr(seldom, "MOST", 10)
    told, now = [], [0.0]
    tell = Seldom(lambda level, event, **fields: told.append(fields["peer"]), 60.0, lambda: now[0])
    for at in range(100):
        tell("warning", "refused", "cluster", f"peer {at}")
    assert len(told) == len(tell._told) == 10
    now[0] = 61.0
    assert tell("warning", "refused", "cluster", "another")
    assert len(tell._told) == 1
