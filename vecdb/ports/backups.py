"""Snapshots on their way: what the node that runs a job asks of others, a shard at a time.

What is asked is told apart by job, what it is, and its ``item``; asked again while it is under way, or has ended, it
is answered with how far it is.  A node that was started anew knows of nothing and begins again, which does no harm:
content that is there is not sent again, and pieces that were loaded are not loaded again.
"""

from dataclasses import dataclass
from typing import Final, Protocol

from vecdb.core.calls import Call
from vecdb.ports.copies import CopyTarget

SAVE: Final = "save"
LOAD: Final = "load"
VERIFY: Final = "verify"
INSTALL: Final = "install"


@dataclass(frozen=True, slots=True)
class BackupOrder:
    """``kind``: save the shard ``item``, a group, of which the node has a replica; load shard ``item`` of a collection
    of a snapshot; or verify it; or fetch its files for the replica here of the one target, which is to adopt them.

    ``url``: the place.  ``snapshot``: its name.  ``bytes_per_s``: of what goes over the line, 0: as fast as it goes.
    The rest is for the latter two: ``collection`` as the snapshot has it; ``targets``: the shards that have hashes of
    it; ``after`` and ``batches``: the rid to go on after, and how many batches were loaded before it.
    """

    job: int
    kind: str
    item: int
    url: str
    snapshot: str
    bytes_per_s: int = 0
    collection: str = ""
    targets: tuple[CopyTarget, ...] = ()
    after: int = -1
    batches: int = 0


@dataclass(frozen=True, slots=True)
class BackupStatus:
    """``state``: running, done or failed (``error``; ``passes``: somebody else, or a later attempt, may succeed).

    ``done`` of ``total`` bytes, ``moved`` of them over the line; ``records`` loaded or verified; ``after`` and
    ``batches`` as in the order: all up to there are loaded; ``problems``: what verifying has found.
    """

    state: str
    done: int = 0
    total: int = 0
    moved: int = 0
    records: int = 0
    after: int = -1
    batches: int = 0
    error: str = ""
    passes: bool = False
    problems: tuple[str, ...] = ()


class Backups(Protocol):
    """Of one node."""

    async def start(self, order: BackupOrder, call: Call) -> BackupStatus:
        """Begin, or say how far it is; ``Unavailable`` where the node has no replica of what is to be saved."""
        ...

    async def stop(self, job: int, call: Call) -> None:
        """End and forget whatever is done for a job."""
        ...
