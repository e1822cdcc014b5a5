"""How long a leader has heard a follower without a pause."""

from tests.unit.raft.test_rules import B, Bench, C


def test_it_is_counted_anew_from_when_a_follower_is_back():
    bench = Bench().lead()
    begun = bench.now
    bench.acknowledge(B, C)
    for _ in range(20):
        bench.now += 0.5
        bench.acknowledge(C)
    bench.acknowledge(B)
    progress = bench.core.progress
    assert progress[C].since <= begun
    assert progress[B].since == bench.now
