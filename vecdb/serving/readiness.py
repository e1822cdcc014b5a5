"""Whether a node is ready: that it serves, and that who stops the next node now takes no shard's majority with it.

**What is waited for** are the replicas that this node is to hold and that count among their group's copies already:
those that were placed here when it started, and those that have been whole here since.  Each is waited for until it is
**whole**: open, a voter, and as far as its group was when it first heard of its leader
(:attr:`vecdb.raft.following.Following.current`).  One that merely lags behind writes that go on stays whole, so
readiness does not come and go under load; one whose log was lost, or whose state was damaged and comes anew, is not
whole until it votes again, be it at a start or long after.  A replica that is *moved* here, or is made for a new
collection or a higher replication factor, is not waited for while this process lives: as long as it joins, its group
has all the voters that it had.

**What is not waited for** is a shard that nobody leads, once it has been so for :data:`UNLED_S`: its replica cannot
catch up before there is a majority, and the other shards here are to be served meanwhile.  That nobody leads it the
warnings of ``/readyz`` say (:mod:`vecdb.serving.leaderless`).  One that is not open yet, which takes large ones a
while, and one that has a leader are waited for without an end: why it does not come is told by the log.

**Who goes by readiness** for clients (a service of Kubernetes does) sends none to a node while it rebuilds, though it
would hand their calls on.  That is the price of one word for two questions; it was paid for the other one, because a
rolling restart that goes on too early costs a shard its majority.  Where replicas on *all* nodes are rebuilt at once,
each of another shard, such a service has nobody to send to until the first is through; the SDK, told of nodes by
address, goes on, for an unready node answers.
"""

from collections.abc import Callable, Mapping
from typing import Final

from vecdb.cluster.control import ControlState, ShardEntry
from vecdb.core.cluster import ShardState
from vecdb.ports.replicator import ReplicaStatus
from vecdb.services.hosts import HostedShard

UNLED_S: Final = 30.0
"""How long a node is not ready for the sake of a shard that nobody leads."""
NAMED: Final = 3
"""Collections that a reason names."""

Receiving = Callable[[int], tuple[int, int] | None]
"""Of the snapshot that a group's replica here is sent: bytes that have come, and all; None where none is."""


class Readiness:
    """See the module.  Belongs to one event loop, whose time is ``now``; made when the node starts."""

    def __init__(self, me: str, now: Callable[[], float], receiving: Receiving = lambda group: None) -> None:
        self._me = me
        self._now = now
        self._receiving = receiving
        self._counted: set[int] | None = None
        """Groups whose replicas here count as copies; None until it is known which were placed here at the start."""
        self._began = now()
        self._unled: dict[int, float] = {}

    def reasons(self, control: ReplicaStatus, state: ControlState, hosted: Mapping[str, HostedShard]) -> list[str]:
        """Why the node is not ready for the sake of its replicas, empty if it is.

        ``control``: the control group's replica here; ``hosted``: by label.
        """
        if not control.current:
            if self._counted is None:
                return ["the control group's log is being replayed"]
            return ["the control group's replica here is rebuilt"] if control.leader else []
        if control.me in control.joining:
            return ["the control group's replica here has no vote yet"]
        mine = {entry.group: entry for entry in state.shards.values()
                if self._me in entry.nodes and entry.state is not ShardState.RETIRED}
        if self._counted is None:
            self._counted = set(mine)
            self._unled = dict.fromkeys(mine, self._began)
        self._counted &= mine.keys()
        self._unled = {group: since for group, since in self._unled.items() if group in mine}
        behind: dict[str, str] = {}
        for group, entry in mine.items():
            status = hosted[entry.label].status if entry.label in hosted else None
            if is_whole(status):
                self._counted.add(group)
                self._unled.pop(group, None)
            elif group in self._counted and self._awaited(group, status):
                behind.setdefault(entry.name, self._how_far(entry))
        if not behind:
            return []
        named = ", ".join(name + far for name, far in sorted(behind.items())[:NAMED])
        return [f"replicas here have not caught up yet: {named}" + (
            f" and {len(behind) - NAMED} more" if len(behind) > NAMED else "")]

    def _awaited(self, group: int, status: ReplicaStatus | None) -> bool:
        if status is None or status.leader is not None:  # one that is not open yet cannot know whether anybody leads
            self._unled.pop(group, None)
            return True
        return self._now() - self._unled.setdefault(group, self._now()) < UNLED_S

    def _how_far(self, entry: ShardEntry) -> str:
        found = self._receiving(entry.group)
        if found is None:
            return ""
        have, of = (f"{size / (1 << 20):.1f}" for size in found)
        return f" (a snapshot comes: {have} of {of} MiB)"


def is_whole(status: ReplicaStatus | None) -> bool:
    """Whether a replica, as its own node sees it, is one that its group can count on."""
    return status is not None and status.state == "ok" and status.current and status.me in status.voters
