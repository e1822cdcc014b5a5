"""What is told of large clusters, with a smaller one."""

from vecdb.testing import scale
from vecdb.testing.scale import Size, balance, built, drained, joined, moves
from vecdb.testing.scale_raft import measure

SIZE = Size(nodes=20, shards=400, zones=4)


def test_placement_is_even_and_moves_are_few():
    ledger = built(SIZE)
    even = balance(ledger.state)
    assert even.mean == 60
    assert even.ratio <= 1.1
    assert even.crowded == 0
    assert len(ledger.state.jobs) == scale.JOBS
    done = joined(ledger, SIZE)
    assert done.after == 0
    assert 0.9 * done.ideal <= done.moved <= 1.25 * done.ideal
    assert done.balance.ratio <= 1.1
    gone = drained(ledger, "n003")
    assert (gone.after, gone.moved) == (0, gone.ideal)
    assert "n003" not in ledger.state.loads()
    assert gone.balance.crowded == 0
    again = moves(ledger, scale.rebalanced, 0)
    assert (again.moved, again.after) == (0, 0)  # it is even enough


def test_heartbeats_share_frames_and_shards_of_a_dead_node_find_leaders():
    told = measure(built(SIZE).state, seed=3)
    assert told.replicas >= 60
    assert 0 < told.led < told.replicas
    followers = told.led * (scale.REPLICAS - 1)
    answers = told.replicas - told.led
    assert 9 * (followers + answers) <= told.messages_s <= 11 * (followers + answers)  # a heartbeat in 0.1 s
    assert told.frames_s < told.messages_s / 2
    assert told.bytes_s < told.alone_bytes_s
    assert told.orphans == told.led
    half, _, every = told.failover_s
    assert 0.9 <= half <= every <= 10.0  # nobody stands before the election timeout is over


def test_what_is_told_names_what_was_measured():
    lines = scale.told(Size(nodes=6, shards=20, zones=3), 1)
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "placement", "control state", "applying a command", "heartbeats", "a node joins", "a node is drained",
        "then rebalanced"]
    assert "failover: the node is killed" in lines[4]
