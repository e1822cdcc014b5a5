"""The control state: what all nodes agree on, as of one log index."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from vecdb.cluster.control.entries import (
    ApiKeyEntry,
    CollectionEntry,
    JobEntry,
    NodeEntry,
    ShardEntry,
    TokenEntry,
)
from vecdb.core.cluster import NodeState
from vecdb.core.errors import (
    CollectionExists,
    CollectionNotFound,
    InvalidArgument,
    KeyNotFound,
    LimitExceeded,
    Unsupported,
    VecdbError,
)
from vecdb.core.limits import MAX_COLLECTIONS

MAX_KEYS_KEPT: Final = 1_024
"""Idempotency keys that are remembered.  Part of what every replica must do alike: change it only with a format."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a command changed nothing: an error as JSON has it."""

    kind: str
    message: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, error: VecdbError) -> "Refusal":
        fields = orjson.loads(orjson.dumps(error.fields, default=str))
        return cls(type(error).__name__, error.message, fields)

    def error(self) -> VecdbError:
        found = _REFUSALS.get(self.kind, VecdbError)
        error = found.__new__(found)
        VecdbError.__init__(error, self.message, **self.fields)
        return error


_REFUSALS: Final = {kind.__name__: kind for kind in (
    CollectionExists, CollectionNotFound, InvalidArgument, KeyNotFound, LimitExceeded)}


def full() -> LimitExceeded:
    return LimitExceeded("name", f"there are {MAX_COLLECTIONS} collections already", got=MAX_COLLECTIONS,
                         limit=MAX_COLLECTIONS)


Outcome = CollectionEntry | NodeEntry | TokenEntry | ApiKeyEntry | JobEntry | tuple[int, ...]
"""What a command made or took away: an entry as it is then (or was), or the numbers of groups."""


@dataclass(frozen=True, slots=True)
class Done:
    """What the command with a key did, at ``log_index``: its outcome, or why it did nothing.

    Refusals are remembered as well: of a command that was sent twice, one may be refused and told to its caller, and
    the other come after all, late, and find things changed.
    """

    fingerprint: int
    log_index: int
    entry: Outcome | Refusal


@dataclass(frozen=True, slots=True)
class ControlState:
    """What is agreed on, as of ``log_index``; never changed in place.

    ``next_group``: the number the next group gets; every group there ever was is below it.  ``next_job`` likewise.
    ``epoch``: how often it has changed who holds what and where calls go.  A group is in ``shards`` for as long as
    anybody may hold something of it.
    """

    collections: Mapping[str, CollectionEntry] = field(default_factory=dict)
    shards: Mapping[int, ShardEntry] = field(default_factory=dict)
    nodes: Mapping[str, NodeEntry] = field(default_factory=dict)
    tokens: Mapping[str, TokenEntry] = field(default_factory=dict)
    api_keys: Mapping[str, ApiKeyEntry] = field(default_factory=dict)
    jobs: Mapping[int, JobEntry] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    loading: Mapping[str, CollectionEntry] = field(default_factory=dict)
    """Collections that are being filled by a job: nobody sees them, and nobody else gets the name."""
    next_group: int = 1
    next_job: int = 1
    epoch: int = 0
    log_index: int = 0
    term: int = 0
    keys: Mapping[bytes, Done] = field(default_factory=dict)
    """By idempotency key, oldest first."""
    digest: int = 0
    """Of all rows but ``s``; the same on every replica at the same log index."""

    def get(self, name: str) -> CollectionEntry:
        """Raises ``CollectionNotFound``."""
        try:
            return self.collections[name]
        except KeyError:
            raise CollectionNotFound(name) from None

    def of(self, name: str) -> list[ShardEntry]:
        """The shards that calls of a collection go to, in the order of their ranges; ``CollectionNotFound``."""
        return [self.shards[group] for group in self.get(name).shards]

    def all_of(self, name: str) -> list[ShardEntry]:
        """Those that are being filled and those that were replaced, too."""
        return [self.shards[group] for group in self.get(name).groups]

    def only(self, name: str) -> ShardEntry:
        """The shard of a collection that has one; ``Unsupported`` for others, ``CollectionNotFound``."""
        groups = self.get(name).shards
        if len(groups) != 1:
            raise Unsupported(f"{name!r} has {len(groups)} shards", collection=name)
        return self.shards[groups[0]]

    def labelled(self, label: str) -> ShardEntry:
        """The shard that nodes hold under this label; ``CollectionNotFound``."""
        name, _, number = label.partition("@")
        is_group = number.isascii() and number.isdigit() and len(number) < 20
        groups = (int(number),) if is_group else self.get(name).groups
        for group in groups:
            found = self.shards.get(group)
            if found is not None and found.label == label:
                return found
        raise CollectionNotFound(name)

    def was_dropped(self, group: int) -> bool:
        """Whether this group was, and is no more; False for one that this state knows nothing of yet."""
        return group < self.next_group and group not in self.shards

    @property
    def commands(self) -> int | None:
        """The latest version of commands that every node reads, as they announced; None where none has yet."""
        return min((node.commands for node in self.nodes.values() if node.state is not NodeState.LEFT), default=None)

    def loads(self) -> dict[str, int]:
        """Replicas by node, as they should be."""
        counts: dict[str, int] = {}
        for entry in self.shards.values():
            for node in entry.desired:
                counts[node] = counts.get(node, 0) + 1
        return counts
