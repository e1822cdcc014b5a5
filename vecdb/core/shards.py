"""What a cluster tells of its shards: who holds a replica, how far each is, and whether all hold the same.

A replica is named ``node/number``; roles and states are those of :class:`vecdb.ports.replicator.ReplicaStatus`, and
``unreachable`` is the state of one whose node did not answer, ``catching up`` of one that its group cannot count on
yet: it has no vote before it has what the others have, or was opened again and has not been as far as its group was
then.
"""

from dataclasses import dataclass

UNREACHABLE = "unreachable"
CATCHING_UP = "catching up"
UNCHECKED = "unchecked"


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """One replica as its own node sees it.  ``role``: leader, follower, candidate or learner; empty where unknown.

    ``lag``: entries the leader has committed and this one has not applied; -1 where one of the two is unknown.
    ``behind``: entries its log lacks of the leader's, -1 likewise.  ``member``: it is told of by the group's
    configuration (as voter or learner) and not only by the placement.
    """

    name: str
    node: str
    state: str
    role: str = ""
    term: int = 0
    commit: int = 0
    applied: int = 0
    first: int = 0
    last: int = 0
    log_bytes: int = 0
    lag: int = -1
    behind: int = -1
    member: bool = True
    error: str = ""


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """A shard and its replicas, in the order of their names.  ``collection``: empty for the control group.

    ``leader``: the replica that leads, None if nobody is known to.  ``state``: ``active``; ``loading``, a split, merge
    or restore fills it; ``retired``, others took its place and it goes soon; empty where the server does not tell.
    ``wanted``: how many replicas its collection is to have of each shard, 0 where that is not told.
    """

    collection: str
    group: int
    leader: str | None
    replicas: tuple[ReplicaInfo, ...] = ()
    state: str = ""
    wanted: int = 0

    @property
    def lacks(self) -> int:
        """Replicas that it is to have besides, for which there was no node yet."""
        return max(0, self.wanted - len(self.replicas))

    @property
    def healthy(self) -> bool:
        """Somebody leads, and every replica is well."""
        return self.leader is not None and all(one.state == "ok" for one in self.replicas)


@dataclass(frozen=True, slots=True)
class ReplicaDigest:
    """The records of one replica at the log index of a verification.

    ``digest``: of all records, in hex; ``records``: how many; ``deep``: the digest of the records as read again from
    its disk, empty if that was not asked; of the log index at which the reading ended, so that it is another one where
    records were written meanwhile.  ``state``: ``ok``, ``unreachable``, ``behind`` (did not get there in
    time), ``damaged`` (read again, its records are not those it remembers, or bytes do not match their checksum),
    ``unchecked`` (its disk refused to be read just then, or nobody led: of which nothing follows for its records).
    """

    name: str
    state: str
    digest: str = ""
    records: int = 0
    deep: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class ShardVerification:
    """Replicas compared at one log index, which is 0 where none were, as nobody leads the shard.

    ``agree``: all that answered hold the same; ``complete``: all answered.
    """

    collection: str
    group: int
    log_index: int
    replicas: tuple[ReplicaDigest, ...]
    agree: bool
    complete: bool
