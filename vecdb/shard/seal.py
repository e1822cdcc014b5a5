"""A seal: the place in a shard's log after which it takes no more writes, until it is lifted or the shard retires.

A shard that is split or merged hands its records to others.  **SEAL** ends its writes at one place in the log, the same
on every replica: what comes after it is refused with :class:`~vecdb.core.errors.ShardSealed` and has done nothing, but
for a repetition of a write whose idempotency key is remembered, which is answered as ever.  Marks and reads go on.  A
seal is a mark too: it says how many records there are and their digest, which stay as they are while it lasts.
**UNSEAL** lifts it.

Both carry a *stamp*, the job and a fence that grows with each of its attempts, because a command may come late: a
proposer that was cut off, and replaced, may be heard of long after.  The shard remembers the greatest stamp it has
seen.

- A SEAL below it, or equal to one that was lifted, is refused: nobody would lift it again.
- An UNSEAL below it does nothing: what it means was given up, and the seal there now is somebody else's.
- An UNSEAL that comes before its SEAL is remembered, and the SEAL is then refused.

So once an UNSEAL of an attempt has been applied, no SEAL of that attempt ever takes effect.  The other way round is
the proposer's to keep: never to propose an UNSEAL of an attempt that may yet have, or has had, its successors switched
to.  It first makes the switch impossible in the control group's log (:mod:`vecdb.services.jobs.reshard`).
"""

import struct
from dataclasses import dataclass
from typing import Final, Self

from vecdb.core.errors import DataCorrupted, InvalidArgument, ShardSealed

_ROW: Final = struct.Struct(">B?QQQ")
_VERSION: Final = 1
RETRY_AFTER_S: Final = 0.05
"""A hint to who is refused: a switch takes some tenths of a second."""


@dataclass(frozen=True, slots=True)
class Seal:
    """The command.  ``job`` of the control group, and the number of its attempt in ``fence``: any that grows."""

    job: int
    fence: int


@dataclass(frozen=True, slots=True)
class Unseal:
    """The command that lifts the seal of the same stamp, or prevents it."""

    job: int
    fence: int


@dataclass(frozen=True, slots=True)
class SealState:
    """The greatest stamp seen, whether it seals the shard, and the log index at which it came to that."""

    job: int = 0
    fence: int = 0
    sealed: bool = False
    log_index: int = 0

    def after(self, command: Seal | Unseal, log_index: int) -> "SealState":
        """The state that a command brings; raises ``InvalidArgument`` or ``ShardSealed`` where it is refused."""
        mine, seen = (command.job, command.fence), (self.job, self.fence)
        if self.sealed and command.job != self.job:
            raise self.refusal()
        if isinstance(command, Unseal):
            return self if mine < seen else SealState(*mine, False, log_index)
        if mine < seen or (mine == seen and not self.sealed and self.log_index):
            raise InvalidArgument("fence", f"attempt {command.fence} of job {command.job} was given up, at log index "
                                  f"{self.log_index} or before", got=command.fence, limit=self.fence)
        return self if mine == seen and self.sealed else SealState(*mine, True, log_index)

    def refusal(self) -> ShardSealed:
        """What a write is refused with."""
        return ShardSealed(f"the shard is sealed since log index {self.log_index}: its records move to other shards "
                           f"(job {self.job})", job=self.job, retry_after_s=RETRY_AFTER_S)

    def to_bytes(self) -> bytes:
        return _ROW.pack(_VERSION, self.sealed, self.job, self.fence, self.log_index)

    @classmethod
    def from_bytes(cls, value: bytes | None) -> Self:
        """Of the row; the default where there is none."""
        if value is None:
            return cls()
        if len(value) != _ROW.size or value[0] != _VERSION:
            raise DataCorrupted("the row of the seal cannot be understood", path="row e", got=len(value))
        _, sealed, job, fence, log_index = _ROW.unpack(value)
        return cls(job, fence, sealed, log_index)
