"""What a node tells of the shards of its cluster, and does about them; alone, it is its own cluster.

Met by :class:`vecdb.services.alone.LoneShards` and by a node that replicates.  A collection that is not there is
CollectionNotFound; work that takes long ends by the call's deadline.
"""

from typing import Protocol

from vecdb.core.calls import Call
from vecdb.core.shards import ShardInfo, ShardVerification


class Shards(Protocol):
    """``name``: of a collection; its shard is meant, for it has one."""

    async def list(self, name: str | None, call: Call) -> "list[ShardInfo]":
        """Of one collection; None: of all, by name, the control group (if there is one) first.

        A replica whose node does not answer in time is ``unreachable``, and no error.
        """
        ...

    async def verify(self, name: str, call: Call, *, deep: bool = False) -> ShardVerification:
        """Compare all replicas at one log index; ``deep``: each reads its records again, too."""
        ...

    async def transfer(self, name: str, to: str | None, call: Call) -> None:
        """Hand the leadership to ``to``, a node or a replica by its name (None: whichever is furthest); somebody leads
        when this returns.

        ``name`` may be empty: the control group.  InvalidArgument for a ``to`` that holds no replica; Unavailable if
        it did not work out in time; Unsupported where there is nobody to hand over to.
        """
        ...
