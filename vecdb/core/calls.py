"""What surrounds a call: when it must be over, whether it still matters, who makes it, and how a repetition is known.

A deadline reaches the kernels as ``stop``, an int32 flag that they look at every few hops: whoever watches the
clock (an event loop's timer, a thread) sets it, and work that sees it set ends within some microseconds.
"""

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from vecdb.core.errors import Cancelled, DeadlineExceeded, InvalidArgument, LimitExceeded, VecdbError

MAX_KEY_BYTES: Final = 64
"""Longest idempotency key: a UUID or a hash in hex, with a prefix."""

PART: Final = "x-vecdb-part"
"""What a call's headers say of a read that takes several calls: its name in hex, "/", how many are still to come."""


class Consistency(StrEnum):
    """What a read sees of the writes before it, in a collection with replicas; alone, a node gives the strongest.

    ``eventual``: what the replica asked has.  ``session``: at least the writes named by the call's ``session``.
    ``linearizable``: every write that was acknowledged before the read began, anybody's.
    """

    EVENTUAL = "eventual"
    SESSION = "session"
    LINEARIZABLE = "linearizable"


class Stopped(IntEnum):
    """The values of ``stop``."""

    NO = 0
    DEADLINE = 1
    CANCELLED = 2


def _flag() -> npt.NDArray[np.int32]:
    return np.zeros(1, np.int32)


@dataclass(frozen=True, slots=True)
class WriteToken:
    """Makes a write happen once: a command whose ``key`` was applied before is answered with what it did then.

    ``key``: 1 to 64 bytes.  ``fingerprint``: 64 bits of the command's content, so that a key used for something
    else is refused instead of answered.
    """

    key: bytes
    fingerprint: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.key, bytes) or not self.key:
            raise InvalidArgument("idempotency_key", "must be non-empty bytes", got=type(self.key).__name__,
                                  limit=f"1..{MAX_KEY_BYTES} bytes")
        if len(self.key) > MAX_KEY_BYTES:
            raise LimitExceeded("idempotency_key", f"{len(self.key)} bytes, more than {MAX_KEY_BYTES}",
                                got=len(self.key), limit=MAX_KEY_BYTES)
        if not 0 <= self.fingerprint < 1 << 64:
            raise InvalidArgument("fingerprint", "does not fit 64 bits", got=self.fingerprint, limit="0..2**64 - 1")


@dataclass(slots=True, eq=False)
class Call:
    """``deadline``: on the monotonic clock (``time.monotonic``), in seconds; None: no end.

    ``stop``: int32 (1,), one of :class:`Stopped`; owned by the caller, watched by the work.
    ``session``: pairs of a shard and a log index that a read must have seen (:class:`Consistency`); pairs of shards
    that are not of the collection asked count for nothing.
    ``allow_partial``: of a query, a count or a scan what shards answered in time is an answer, which says what is
    missing.  ``shards``: of a collection with several shards the read is of these alone; none: of all.
    ``elsewhere``: who calls knows of other nodes: one that reaches no majority says so instead of waiting for one.
    ``handed_on``: set where another node did a write, or a part of it, than the one that was asked.
    ``part``: of a longer read, by its name (8 to 32 hex digits) and how many calls of it are still to come.
    """

    deadline: float | None = None
    token: WriteToken | None = None
    request_id: str = ""
    principal: str = ""
    consistency: Consistency = Consistency.EVENTUAL
    session: tuple[tuple[int, int], ...] = ()
    allow_partial: bool = False
    shards: tuple[int, ...] = ()
    stop: npt.NDArray[np.int32] = field(default_factory=_flag)
    elsewhere: bool = False
    handed_on: bool = False
    part: tuple[str, int] | None = None

    def end(self, why: Stopped) -> None:
        """Ask the work to end; the first reason stays."""
        if not self.stop[0]:
            self.stop[0] = why

    def check(self) -> None:
        """Raise DeadlineExceeded or Cancelled if the call was ended."""
        if self.stop[0]:  # comparing NumPy's scalar with an enum's member takes forty times as long
            raise stopped_error(int(self.stop[0]))


def check(call: Call | None) -> None:
    """Raise what ended ``call``, if it is one and was ended."""
    if call is not None and call.stop[0]:
        raise stopped_error(int(call.stop[0]))


def stopped_error(why: int) -> VecdbError:
    """The error that a set flag means."""
    if why == Stopped.CANCELLED:
        return Cancelled("the caller gave the call up")
    return DeadlineExceeded("the deadline passed before the work was done")
