"""What operators ask of a cluster beside what :mod:`vecdb.core.cluster` tells: the whole at a glance, and tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vecdb.core.cluster import NodeInfo


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """A cluster at a glance.  ``node``: that answered; ``leader``: of the control group, None: nobody is known to be.

    ``epoch`` rises with every change of the placement; ``jobs``: that have not ended; ``settings``: as they were set.
    ``unheard``: nodes that vote in the control group and have told nothing of themselves yet, so they are not among
    the ``nodes``.
    """

    name: str
    node: str
    leader: str | None
    epoch: int
    nodes: tuple[NodeInfo, ...] = ()
    collections: int = 0
    shards: int = 0
    jobs: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    unheard: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A token to join with, without its secret.  ``roles``: that a node may have which joins with it, none: any.
    Wall clock; ``expires_s`` 0: never.
    """

    id: str
    created_s: float = 0.0
    expires_s: float = 0.0
    roles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NewJoinToken:
    """A token that was just made; ``secret`` is told this once, and is what a node is given to join with."""

    token: JoinToken
    secret: str


SETTINGS: Mapping[str, tuple[float, float, float, str]] = {
    "repair_after_s": (600.0, 0.0, 30 * 86_400.0, "seconds without a word from a node until what it holds is built "
                                                  "anew elsewhere; 0: never, nor are replicas made by "
                                                  "themselves that shards lack"),
    "scrub_every_s": (86_400.0, 0.0, 366 * 86_400.0, "seconds from one comparison of a collection's replicas to the "
                                                     "next; 0: never"),
    "rebalance_auto": (1.0, 0.0, 1.0, "1: shards move by themselves, two at a time, when a node has been further from "
                                      "its share for two minutes than a quarter of it and a replica and a half; "
                                      "0: never"),
    "copy_bytes_s": (0.0, 0.0, 1 << 40, "bytes a second that each node sends for a split or merge, or fetches for a "
                                        "restore, where the job does not say it: of splits and merges that run, too; "
                                        "0: as fast as it goes"),
}
"""Settings of a cluster: the default, the least, the most, and what it means.  All are numbers."""
