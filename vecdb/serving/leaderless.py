"""Shards that nobody leads, as warnings of a ready node.

They are no reason to be unready: a node that were taken out of service for one collection would serve the others no
more, and where a majority is lost for good, all nodes that have what is left would be.
"""

from collections.abc import Callable, Mapping
from typing import Final

from vecdb.cluster.control import ControlState
from vecdb.core.cluster import ShardState
from vecdb.services.hosts import HostedShard

AFTER_S: Final = 10.0
"""Longer than elections take."""
NAMED: Final = 8


class Leaderless:
    """Since when replicas on this node (``me``) have known of no leader.  Belongs to one event loop, whose time is
    ``now``; it sees what there is whenever it is asked to :meth:`look`.
    """

    def __init__(self, me: str, now: Callable[[], float]) -> None:
        self._me = me
        self._now = now
        self._since: dict[int, float] = {}
        self._names: dict[int, str] = {}

    def look(self, state: ControlState, hosted: Mapping[str, HostedShard]) -> None:
        """``hosted``: by label."""
        now, found = self._now(), dict[int, float]()
        for entry in state.shards.values():
            here = hosted.get(entry.label)
            if here is not None and here.status is not None and here.status.leader is None \
                    and self._me in entry.nodes and entry.state is ShardState.ACTIVE:
                found[entry.group] = self._since.get(entry.group, now)
                self._names[entry.group] = entry.name
        self._since = found
        self._names = {group: self._names[group] for group in found}

    def unled_s(self, group: int) -> float:
        """For how long, as it was seen; 0.0 where it is led."""
        since = self._since.get(group)
        return 0.0 if since is None else self._now() - since

    def warnings(self, away: Mapping[str, str]) -> list[str]:
        """What :meth:`look` has seen for :data:`AFTER_S`; ``away``: nodes that are not reached, and why."""
        now = self._now()
        long = {group: now - since for group, since in sorted(self._since.items()) if now - since >= AFTER_S}
        told = [f"nobody leads shard {group} of {self._names[group]!r}, for {seconds:.0f} s: it is not written, and "
                "read with consistency eventual alone" for group, seconds in list(long.items())[:NAMED]]
        if len(long) > NAMED:
            told.append(f"nobody leads {len(long) - NAMED} more shards")
        return told + [f"node {node} is not reached: {why}" for node, why in away.items()] if told else []
