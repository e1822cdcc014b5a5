"""What a cluster tells of itself: nodes, collections with their shards, jobs, and plans of what is about to be done.

These are answers, made for who asks; what the control group keeps is :mod:`vecdb.cluster.control`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

HASH_SPACE: Final = 1 << 64
"""Shards divide the hashes ``0 <= hash < HASH_SPACE`` of ids, or of a shard key's values."""

MAX_CLUSTER_NODES: Final = 256
"""Most nodes of one cluster: each applies the whole control state, and hears of every other."""

MAX_SHARDS: Final = 65_536
"""Most shards of one cluster: some hundred bytes each in the control state, on every node."""

MAX_COLLECTION_SHARDS: Final = 1_024
"""Most shards of one collection: a query asks every one of them."""

MAX_JOBS_KEPT: Final = 1_000
"""Jobs that have ended are remembered, the latest."""

MAX_JOBS_OPEN: Final = 1_000
"""Most jobs that have not ended."""

MAX_JOIN_TOKENS: Final = 1_000
"""Most tokens to join with."""

CLOCK_OFF_S: Final = 60.0
"""A node whose clock differs so much from the control leader's is told of."""

SILENT_S: Final = 10.0
"""A node that was not heard from for so long is told of."""

MISSED_S: Final = 3.0
"""A node tells of itself every other second: since when its last word was, is told with how it is from here on."""

PAST_CANCELLING: Final = ("retire",)
"""Phases of jobs whose work is done: calls go to what they made, and only what was there before is left to go."""

SLOW_SYNC_S: Final = 0.25
"""A disk that took so long for one batch of the log is told of: writes wait for it."""

DISK_FULL: Final = "disk full"
DISK_LOW: Final = "disk nearly full"
_FULL_BYTES, _LOW_BYTES, _LOW_PART, _LOW_MOST_BYTES = 16 << 20, 64 << 20, 0.05, 10 << 30


def disk_state(stats: Mapping[str, float]) -> str:
    """Of a node, by what it told of itself: ``DISK_FULL`` (less than 16 MiB free), ``DISK_LOW`` (less than 64 MiB, or
    less than a twentieth and 10 GiB), or nothing.  Neither is given replicas while others can take them.
    """
    free, total = stats.get("disk_free_bytes"), stats.get("disk_total_bytes")
    if free is None or total is None:
        return ""
    if free < _FULL_BYTES:
        return DISK_FULL
    return DISK_LOW if free < _LOW_BYTES or free < min(_LOW_PART * total, _LOW_MOST_BYTES) else ""


MAX_CLUSTER_SETTINGS: Final = 1_000
"""Most settings of one cluster."""


class Role(StrEnum):
    """What a node does: coordinators vote in the control group, shard nodes hold replicas, both do both."""

    BOTH = "both"
    COORDINATOR = "coordinator"
    SHARD = "shard"

    @property
    def votes(self) -> bool:
        return self is not Role.SHARD

    @property
    def holds(self) -> bool:
        return self is not Role.COORDINATOR


class NodeState(StrEnum):
    """Whether a node is given replicas.  draining: none, and those it has are moved away; drained: it has none;
    left: it is no part of the cluster any more.
    """

    ACTIVE = "active"
    DRAINING = "draining"
    DRAINED = "drained"
    LEFT = "left"


class JobState(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class ShardState(StrEnum):
    """loading: it is being filled and answers nobody; active: calls go to it; retired: others took its place."""

    LOADING = "loading"
    ACTIVE = "active"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node.  ``address``: for other nodes; ``client_address`` and ``http_address``: for clients.

    ``heard_s``: seconds since the control leader heard of it, -1: not since it leads.  ``silent_s``: the same, but
    since it leads, or since the node joined if that was later, where it heard nothing: from this a node counts as
    silent; -1: unknown, as of older releases.
    ``voter``: it votes in the control group.  ``replicas``: it should hold; ``leaders``: it leads, -1 where unknown.
    ``stats``: what it last told of itself.
    """

    name: str
    address: str
    client_address: str = ""
    http_address: str = ""
    role: str = Role.BOTH
    zone: str = ""
    capacity: float = 1.0
    state: str = NodeState.ACTIVE
    version: str = ""
    heard_s: float = -1.0
    voter: bool = False
    replicas: int = 0
    leaders: int = -1
    stats: Mapping[str, float] = field(default_factory=dict)
    silent_s: float = -1.0

    @property
    def silence_s(self) -> float:
        """For how long nothing was heard of it, as far as is known; -1: it is not."""
        return self.silent_s if self.silent_s >= 0 else self.heard_s


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """``shards``: groups in the order of their hashes; ``shard_key``: the metadata field that decides, None: the id."""

    name: str
    shards: tuple[int, ...]
    replication_factor: int
    shard_key: str | None = None
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class JobInfo:
    """``done`` of ``total`` in ``unit``, ``total`` 0 where it is not known; ``eta_s``: -1 where it is not known;
    ``error``: why it has failed, what it waits for, or what is to be said of how it ended.
    """

    id: int
    kind: str
    target: str
    args: Mapping[str, Any]
    state: str
    phase: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    created_s: float = 0.0
    updated_s: float = 0.0
    eta_s: float = -1.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One thing that will be done.  ``action``: a word for programs; ``text``: for people; ``bytes``: to be copied."""

    action: str
    target: str
    text: str
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done, in order; ``notes``: what whoever agrees to it should know."""

    kind: str
    steps: tuple[PlanStep, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.steps

    @property
    def bytes(self) -> int:
        return sum(step.bytes for step in self.steps)
