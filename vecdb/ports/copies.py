"""Copies of shards on their way: what is asked of a node that has a replica of a source.

One copier at a time reads a source for a job.  An order is told apart by its ``fence``, which grows with every attempt
of the job; every attempt has targets of its own, so what an earlier one still writes goes into shards that are dropped.
"""

from dataclasses import dataclass
from typing import Final, Protocol

from vecdb.core.calls import Call

NEVER: Final = "it cannot catch up"
"""In the ``error`` of a copier that is limited to less than what changes its source."""


@dataclass(frozen=True, slots=True)
class CopyTarget:
    """A shard that is filled: its group, which gets the hashes ``lo`` to ``hi`` (exclusive), on these nodes."""

    group: int
    lo: int
    hi: int
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CopyOrder:
    """What to copy: the records of ``source``, which has the hashes ``lo`` to ``hi`` (exclusive), and what changes
    them, to ``targets``, which together have all of these hashes.

    ``bytes_per_s``: of what is sent, 0: as fast as it goes; it may be changed by ordering the same once more.
    """

    job: int
    fence: int
    source: int
    lo: int
    hi: int
    targets: tuple[CopyTarget, ...]
    shard_key: str = ""
    bytes_per_s: int = 0


@dataclass(frozen=True, slots=True)
class CopyStatus:
    """``state``: copying (the records of the moment it began), following (what changes them), stopped, or failed: then
    an attempt with other targets is to be made.

    ``records`` of ``total``, and bytes, were taken by the targets, with changes counted in bytes alone.  ``copied_to``:
    every change up to this log index of the source is at the targets; ``applied``: as far as the replica has come that
    is read.  ``error``: why it has failed, or what keeps it from going on, with :data:`NEVER` where that is its limit.
    """

    job: int
    fence: int
    source: int
    state: str
    records: int = 0
    total: int = 0
    bytes: int = 0
    copied_to: int = 0
    applied: int = 0
    error: str = ""

    @property
    def lag(self) -> int:
        """Entries of the log that the targets do not have yet."""
        return max(0, self.applied - self.copied_to)


class Copies(Protocol):
    """The copiers of one node.  ``Unavailable`` where it has no replica of the source."""

    async def start(self, order: CopyOrder, call: Call) -> CopyStatus:
        """Begin, if nobody copies this source for this job or an earlier attempt of it; else how far that is.

        ``InvalidArgument`` for an attempt before the one that is under way.
        """
        ...

    async def status(self, job: int, source: int, call: Call) -> CopyStatus | None:
        """None: nobody copies it here; the process may have been another one."""
        ...

    async def stop(self, job: int, source: int, call: Call) -> None:
        """End it, and forget it."""
        ...
