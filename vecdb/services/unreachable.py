"""Positions of a session that no replica will ever reach, told apart from those that one has not reached yet.

A position comes with a write that was acknowledged, so the leader has committed it; one beyond what is committed is of
another cluster, or of a state that a backup has replaced.  Who waited for it would wait until the deadline, and again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from vecdb.cluster.control import ShardEntry
from vecdb.core.calls import Call
from vecdb.core.errors import InvalidArgument, VecdbError

GONE: Final = 1 << 62
"""Positions from here on stand for shards that the session has dropped."""


async def refuse_unreachable(entry: ShardEntry, call: Call, committed: Callable[[int], Awaitable[int]],
                             most_s: float) -> None:
    """Raise ``InvalidArgument`` if the call's session names a place beyond what ``committed(group)`` says.

    Says nothing where that is not known within ``most_s`` seconds.
    """
    wanted = max((log_index for shard, log_index in call.session if shard == entry.group), default=0)
    if not 0 < wanted < GONE:
        return
    try:
        async with asyncio.timeout(most_s):
            last = await committed(entry.group)
    except (TimeoutError, VecdbError):
        return
    if last < wanted:
        raise InvalidArgument("session", f"names log index {wanted:,} of shard {entry.group} ({entry.name!r}), whose "
                              f"log ends at {last:,}: the position is of another cluster, or of what a restored "
                              "backup has replaced", got=wanted, limit=last)
