"""Replicas as metrics: what a page says of them, and that a page goes on without them."""

from vecdb.core.errors import Unavailable
from vecdb.ports.replicator import ReplicaStatus
from vecdb.runtime.exposition import Exposition
from vecdb.runtime.instruments import OTHER, Names
from vecdb.runtime.replication import CONTROL, Figures, Replication


def status(**given: object) -> ReplicaStatus:
    told = {"me": "n1/7", "state": "ok", "role": "follower", "term": 3, "leader": "n2/7", "commit": 20, "applied": 18,
            "first": 1, "last": 20, "log_bytes": 100}
    return ReplicaStatus(**{**told, **given})  # type: ignore[arg-type]


def page(figures: Figures, most: int = 100) -> list[str]:
    source = Replication(lambda: figures, Names(most))
    return Exposition([source]).text()[1].decode().splitlines()


def test_groups_leaders_and_lags() -> None:
    lines = page(Figures(
        replicas={CONTROL: status(role="leader", leader="n1/7", matches={"n2/7": 15, "n3/7": 20}),
                  "docs": status(), "lost": status(state="halted", leader=None)},
        snapshots={"docs": (10, 40)}, events={"raft_leader": 2}, dropped={"malformed": 1}, frames={"sent_frames": 9},
        waiting_bytes=77, refused={"cluster": 4}, handed_on={"propose": 5}))
    for line in ('vecdb_raft_replicas{state="ok"} 2.0', 'vecdb_raft_replicas{state="halted"} 1.0',
                 'vecdb_raft_replicas{state="joining"} 0.0', "vecdb_raft_leaders 1.0",
                 "vecdb_raft_without_leader 1.0", "vecdb_raft_log_bytes 300.0",
                 'vecdb_raft_apply_lag{collection="docs"} 2.0', 'vecdb_raft_follower_lag{collection="_control"} 5.0',
                 'vecdb_raft_term{collection="docs"} 3.0', 'vecdb_raft_snapshot_bytes{collection="docs"} 40.0',
                 'vecdb_raft_snapshot_received_bytes{collection="docs"} 10.0',
                 'vecdb_raft_events_total{event="raft_leader"} 2.0',
                 'vecdb_raft_messages_dropped_total{reason="malformed"} 1.0',
                 'vecdb_peer_frames_total{kind="sent_frames"} 9.0', "vecdb_peer_waiting_bytes 77.0",
                 'vecdb_peer_calls_refused_total{reason="cluster"} 4.0', 'vecdb_handed_on_total{what="propose"} 5.0'):
        assert line in lines


def test_collections_beyond_the_bound_are_one() -> None:
    lines = page(Figures(replicas={f"c{number}": status(term=number) for number in range(9)}), most=3)
    terms = [line for line in lines if line.startswith("vecdb_raft_term{")]
    assert len(terms) == 4
    assert any(OTHER in line for line in terms)
    assert 'vecdb_raft_replicas{state="ok"} 9.0' in lines


def test_a_node_that_does_not_answer_leaves_them_out() -> None:
    def read() -> Figures:
        raise Unavailable("it stops")

    assert Exposition([Replication(read, Names(3))]).text()[1] == b""
