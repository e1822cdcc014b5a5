"""What a node's replicas are like at the moment somebody looks, as Prometheus metrics."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.core import Metric

from vecdb.core.errors import VecdbError
from vecdb.ports.replicator import ReplicaStatus
from vecdb.runtime.instruments import Labels, Names, counters, gauges

CONTROL: Final = "_control"
"""The control group's label, which no collection's name can be."""
STATES: Final = ("ok", "joining", "removed", "halted")
_BY: Final = ("collection",)
_OF_EACH: Final[tuple[tuple[str, str, Callable[[ReplicaStatus], int]], ...]] = (
    ("vecdb_raft_term", "Term of the replica", lambda one: one.term),
    ("vecdb_raft_commit_index", "Last log index known to be committed", lambda one: one.commit),
    ("vecdb_raft_applied_index", "Last log index applied", lambda one: one.applied),
    ("vecdb_raft_apply_lag", "Entries committed and not applied here", lambda one: one.commit - one.applied),
    ("vecdb_raft_follower_lag", "Entries that the follower furthest behind lacks, on the leader",
     lambda one: max((one.last - match for match in one.matches.values()), default=0)),
)


@dataclass(frozen=True, slots=True)
class Figures:
    """``replicas``: by collection (:data:`CONTROL`: the control group).  ``snapshots``: bytes that have come, and of
    how many, of those on their way here.  The rest are totals since the start.
    """

    replicas: Mapping[str, ReplicaStatus] = field(default_factory=dict)
    snapshots: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    events: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    frames: Mapping[str, int] = field(default_factory=dict)
    waiting_bytes: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    handed_on: Mapping[str, int] = field(default_factory=dict)
    syncs: tuple[int, float, float] = (0, 0.0, 0.0)
    """Of the logs' disk: how many, seconds in all, and those of the slowest of the last minute or two."""


class Replication:
    """A source of metrics; ``read`` is called in the page's thread and raises ``VecdbError`` or ``TimeoutError`` where
    it gets no answer, which leaves the figures out of that page.  ``names`` bounds the collections told apart.
    """

    def __init__(self, read: Callable[[], Figures], names: Names) -> None:
        self._read = read
        self._names = names

    def collect(self) -> Iterator[Metric]:
        try:
            figures = self._read()
        except (VecdbError, TimeoutError):
            return
        yield from self._groups(figures.replicas)
        yield from self._snapshots(figures.snapshots)
        count, total_s, slowest_s = figures.syncs
        yield counters("vecdb_raft_syncs", "Batches of all logs that were synced to the disk", (), {(): float(count)})
        yield counters("vecdb_raft_sync_seconds", "Seconds that this took", (), {(): total_s})
        yield gauges("vecdb_raft_sync_slowest_seconds", "The slowest of the last minute or two, one that has not ended "
                     "as well", (), {(): slowest_s})
        yield gauges("vecdb_peer_waiting_bytes", "Frames that wait to be sent", (), {(): float(figures.waiting_bytes)})
        for name, text, label, values in (
                ("vecdb_raft_events", "What replicas told of: elections won (raft_leader), leaderships given to a node "
                 "that led fewer (leader_balanced), damage, snapshots", "event", figures.events),
                ("vecdb_raft_messages_dropped", "Messages that were not for a replica here or made no sense", "reason",
                 figures.dropped),
                ("vecdb_peer_frames", "Frames between nodes, by what became of them", "kind", figures.frames),
                ("vecdb_peer_calls_refused", "Calls of other nodes that were refused, and certificates "
                 "that they showed when they were called", "reason", figures.refused),
                ("vecdb_handed_on", "Calls that were handed on to another node", "what", figures.handed_on)):
            yield counters(name, text, (label,), {(one,): float(count) for one, count in values.items()})

    def _groups(self, replicas: Mapping[str, ReplicaStatus]) -> Iterator[Metric]:
        states: dict[Labels, float] = dict.fromkeys(((state,) for state in STATES), 0.0)
        shown: dict[str, ReplicaStatus] = {}
        bytes_held = leading = waiting = 0.0
        for name, status in replicas.items():
            states[(status.state,)] = states.get((status.state,), 0.0) + 1
            leading += status.role == "leader"
            waiting += status.leader is None
            bytes_held += status.log_bytes
            label = name if name == CONTROL else self._names.believe(name)
            shown.setdefault(label, status)
        yield gauges("vecdb_raft_replicas", "Replicas on this node", ("state",), states)
        yield gauges("vecdb_raft_leaders", "Groups that this node leads", (), {(): leading})
        yield gauges("vecdb_raft_without_leader", "Groups whose leader this node does not know", (), {(): waiting})
        yield gauges("vecdb_raft_log_bytes", "Bytes of logs on this node", (), {(): bytes_held})
        for name, text, read in _OF_EACH:
            yield gauges(name, text, _BY, {(label,): float(read(one)) for label, one in shown.items()})

    def _snapshots(self, snapshots: Mapping[str, tuple[int, int]]) -> Iterator[Metric]:
        known = {self._names.label(name): figures for name, figures in snapshots.items()}
        yield gauges("vecdb_raft_snapshot_received_bytes", "Of a snapshot on its way here, what has come", _BY,
                     {(name,): float(done) for name, (done, _) in known.items()})
        yield gauges("vecdb_raft_snapshot_bytes", "Of a snapshot on its way here, all", _BY,
                     {(name,): float(total) for name, (_, total) in known.items()})
