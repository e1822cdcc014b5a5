"""Calls to a shard that nobody has led for long are refused with that, instead of waiting for their deadlines.

An election takes a second or two, a restart of most of the nodes some more, and calls wait for these.  Where it has
taken :data:`LOST_S` already a majority is away, and who calls is to hear so while there is time to read it: an answer
that is given at the deadline comes after the caller has given up.  What this node's replica does not know the other
members may: they are asked before a call is refused.
"""

import asyncio
from typing import Final

from vecdb.cluster.control import ShardEntry
from vecdb.core.errors import Unavailable, VecdbError
from vecdb.services.coordinator.knowledge import Knowledge

LOST_S: Final = 30.0
ASK_S: Final = 1.0


async def refuse_unled(know: Knowledge, shard: ShardEntry) -> None:
    """Raise ``Unavailable`` where nobody has led the shard for :data:`LOST_S`, as far as its members say."""
    seconds = know.own.unled_s(shard.group)
    if seconds < LOST_S or know.own.leader(shard.group) is not None:
        return

    async def leads(node: str) -> bool:
        try:
            async with asyncio.timeout(ASK_S):
                return await know.ask_leader(shard.group, node) == node
        except (VecdbError, TimeoutError):
            return False

    others = [node for node in know.members(shard) if node != know.cluster.me]
    if any(await asyncio.gather(*map(leads, others))):
        return
    raise Unavailable(f"nobody leads shard {shard.group} of {shard.name!r}, for {seconds:.0f} s: most of its replicas "
                      "that have a vote are away or gone (vecdb doctor says which); reads with consistency eventual "
                      "are answered", collection=shard.name, shard=shard.group)
