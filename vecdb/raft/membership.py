"""Who belongs to a group: the configuration, and the one change at a time that may be made to it.

A **replica** is ``node/number``.  The number is never used again on that node for that group: a replica whose disk has
forgotten what it promised comes back under a new one, so an old vote or acknowledgement can be mistaken for nobody's.

The log's membership entries carry the whole configuration that follows, not the difference, so that the one in force
is the last in the log, committed or not (dissertation 4.1), and a truncated log needs no undoing.  A change touches at
most one voter, so that any majority of the old meets any majority of the new.

Of learners there are two kinds.  Who is **joining** becomes a voter once it has caught up.  An **observer** stays what
it is: it has the log and applies it, so it answers eventual and session reads, and the strongest by the leader's word;
it never votes, nobody waits for it, it hears fewer heartbeats, and the log is not kept for one that does not answer or
that takes too long over a snapshot.  One whose disk is lost is replaced by its node's next, which observes.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Self

from vecdb.core.errors import InvalidArgument

MAX_REPLICAS: Final = 256
"""Most replicas of one group: those beyond its voters observe."""
MAX_VOTERS: Final = 7
"""More would only cost latency.  One more may be there while it takes another's place."""
MAX_NODE_BYTES: Final = 64
MAX_NUMBER: Final = (1 << 32) - 1

_HEAD: Final = struct.Struct("<BB")
_LARGE_HEAD: Final = struct.Struct("<BH")
_MEMBER: Final = struct.Struct("<BIB")
_VERSION: Final = 1
_LARGE_VERSION: Final = 2
"""Of more than 255 replicas."""
_VOTER, _LEARNER, _JOINING = 0, 1, 2


def replica_id(node: str, number: int) -> str:
    """``n2/7``."""
    return f"{node}/{number}"


def node_of(replica: str) -> str:
    return replica.rpartition("/")[0]


def number_of(replica: str) -> int:
    return int(replica.rpartition("/")[2])


def check_replica(replica: str) -> str:
    """Return it, or raise ``InvalidArgument``: ``node/number``, the node of up to 64 bytes, the number of 32 bits."""
    node, slash, number = replica.rpartition("/")
    good = slash and node and len(node.encode()) <= MAX_NODE_BYTES and number.isascii() and number.isdigit() \
        and str(int(number)) == number and int(number) <= MAX_NUMBER
    if not good:
        raise InvalidArgument("replica", "is not node/number", got=replica[:80], limit="n2/7")
    return replica


@dataclass(frozen=True, slots=True)
class Configuration:
    """``joining`` are learners that become voters when they have caught up.  All three are sorted and disjoint."""

    voters: tuple[str, ...] = ()
    learners: tuple[str, ...] = ()
    joining: tuple[str, ...] = ()

    @classmethod
    def of(cls, voters: Iterable[str], learners: Iterable[str] = (), joining: Iterable[str] = ()) -> Self:
        made = cls(tuple(sorted(voters)), tuple(sorted(learners)), tuple(sorted(joining)))
        everybody = made.everybody
        if len(set(everybody)) != len(everybody) or len(everybody) > MAX_REPLICAS:
            raise InvalidArgument("configuration", "names a replica twice or too many", got=len(everybody),
                                  limit=MAX_REPLICAS)
        if len(made.voters) + len(made.joining) > MAX_VOTERS + 1:
            raise InvalidArgument("configuration", "has too many voters: others may observe", limit=MAX_VOTERS,
                                  got=len(made.voters) + len(made.joining))
        for replica in everybody:
            check_replica(replica)
        return made

    @property
    def everybody(self) -> tuple[str, ...]:
        return (*self.voters, *self.learners, *self.joining)

    @property
    def quorum(self) -> int:
        return len(self.voters) // 2 + 1

    def agreed(self, replicas: Iterable[str]) -> bool:
        """Whether these hold a majority of the voters."""
        return len(set(replicas) & set(self.voters)) >= self.quorum

    def to_bytes(self) -> bytes:
        count = len(self.everybody)
        parts = [_HEAD.pack(_VERSION, count) if count < 256 else _LARGE_HEAD.pack(_LARGE_VERSION, count)]
        for kind, replicas in ((_VOTER, self.voters), (_LEARNER, self.learners), (_JOINING, self.joining)):
            for replica in replicas:
                node = node_of(replica).encode()
                parts += (_MEMBER.pack(kind, number_of(replica), len(node)), node)
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, value: bytes) -> Self:
        """Raises ``ValueError`` for bytes that are no configuration."""
        kinds: tuple[list[str], list[str], list[str]] = ([], [], [])
        try:
            head = _LARGE_HEAD if value[:1] == bytes([_LARGE_VERSION]) else _HEAD
            version, count = head.unpack_from(value)
            at = head.size
            for _ in range(count):
                kind, number, length = _MEMBER.unpack_from(value, at)
                at += _MEMBER.size
                kinds[kind].append(replica_id(value[at:at + length].decode(), number))
                at += length
            if version not in (_VERSION, _LARGE_VERSION) or at != len(value):
                raise ValueError("not a configuration")
            return cls.of(*kinds)
        except (struct.error, IndexError) as error:
            raise ValueError("not a configuration") from error


@dataclass(frozen=True, slots=True)
class Change:
    """One step: ``add`` a learner (``join``: to be promoted when it has caught up; otherwise it observes), ``remove`` a
    replica, or both.
    """

    add: str | None = None
    remove: str | None = None
    join: bool = True

    def applied_to(self, now: Configuration) -> Configuration:
        """The configuration that follows; ``InvalidArgument`` where the step makes no sense."""
        after = now
        if self.remove is not None:
            if self.remove not in now.everybody:
                raise InvalidArgument("remove", "is no replica of the group", got=self.remove,
                                      limit=list(now.everybody))
            if now.voters == (self.remove,):
                raise InvalidArgument("remove", "is the only voter", got=self.remove, limit="a group of more")
            after = Configuration(*(tuple(one for one in some if one != self.remove)
                                    for some in (now.voters, now.learners, now.joining)))
        if self.add is not None:
            if self.add in now.everybody:
                raise InvalidArgument("add", "is a replica of the group already", got=self.add)
            if node_of(self.add) in map(node_of, after.everybody):
                raise InvalidArgument("add", "has a replica of the group on its node already", got=self.add)
            after = Configuration.of(after.voters, (*after.learners, *(() if self.join else (self.add,))),
                                     (*after.joining, *((self.add,) if self.join else ())))
        if after == now:
            raise InvalidArgument("change", "changes nothing")
        return after


def promoted(now: Configuration, replica: str) -> Configuration:
    """The configuration with a joining learner as a voter."""
    return replace(now, voters=tuple(sorted((*now.voters, replica))),
                   joining=tuple(one for one in now.joining if one != replica))
