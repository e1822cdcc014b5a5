"""How a shard's writes become the same on all its replicas: what a shard service needs, and the state machine it gives.

Moments are on the injected monotonic clock; a deadline of None waits as long as it takes.  A **replica** is named
``node/number``; hints of who leads are such names.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable


class Position(NamedTuple):
    """A place in the log, with the term of the entry that stands there."""

    log_index: int
    term: int


class SnapshotFile(NamedTuple):
    """``name``: a relative path.  ``checksum``: xxh3-64 of the whole file."""

    name: str
    bytes: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Committed:
    """What came of a proposal: its place, and what ``apply`` returned for it on the replica asked."""

    log_index: int
    result: object


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """What a replica knows of itself, and as a leader of the others: how far each log matches, when each was heard.

    ``state``: ``ok``, ``joining`` (no member yet: it is new, or its log was damaged), ``removed``, or ``halted`` (its
    state machine or its disk failed; ``error`` says how).  ``current``: it has applied, since it was opened, all that
    was committed when a leader was first heard; True from nodes of versions that do not tell.  ``steady_s``: for how
    long this leader has heard each without a pause; told to nobody else.
    """

    me: str
    state: str
    role: str
    term: int
    leader: str | None
    commit: int
    applied: int
    first: int
    last: int
    log_bytes: int
    voters: tuple[str, ...] = ()
    learners: tuple[str, ...] = ()
    joining: tuple[str, ...] = ()
    matches: dict[str, int] = field(default_factory=dict)
    heard_s: dict[str, float] = field(default_factory=dict)
    error: str = ""
    current: bool = True
    steady_s: dict[str, float] = field(default_factory=dict)


class Replicator(Protocol):
    """One replica of one group.  Belongs to the event loop it was made in."""

    async def propose(self, command: bytes, deadline: float | None) -> Committed:
        """Return once the command is on stable storage of a majority and applied here.

        Raises ``NotLeader`` (with a hint) or ``Overloaded``: nothing was done.  ``OutcomeUnknown``: the leadership or
        the deadline ended while it was under way; proposed again under the same idempotency key it happens once.
        What ``apply`` returns as an error is raised.
        """
        ...

    async def read_index(self, deadline: float | None) -> int:
        """For linearizable reads: return once this replica leads for certain, and has applied all that was committed
        when it was asked; ``NotLeader``, ``DeadlineExceeded``.
        """
        ...

    async def wait_applied(self, log_index: int, deadline: float | None) -> None:
        """For session reads: return once this replica has applied ``log_index``; ``DeadlineExceeded``."""
        ...

    async def change_members(self, add: str | None, remove: str | None, deadline: float | None, *,
                             observe: bool = False) -> None:
        """Return once the change is committed: ``add`` joins as a learner and becomes a voter when it has caught up, or
        with ``observe`` stays one.

        One change at a time: ``Unavailable`` while another is under way, or if no majority of those who would remain is
        heard.  Both in one step only where the replica to be removed is dead; one that lives is removed once the new
        one is a voter.  A leader that is to be removed hands over and raises ``NotLeader``: ask the next.
        """
        ...

    async def transfer(self, to: str | None, deadline: float | None) -> None:
        """Hand the leadership to ``to``, or to who is furthest; ``Unavailable`` if that did not work out in time."""
        ...

    def status(self) -> ReplicaStatus: ...


class Snapshot(Protocol):
    """A state that stays as it is, by reference (hard links), until it is released.  ``read`` from any thread."""

    position: Position
    files: Sequence[SnapshotFile]

    def read(self, file: int, offset: int, length: int) -> bytes: ...

    def release(self) -> None: ...


class Incoming(Protocol):
    """A snapshot on its way here.  What has arrived stays for a next attempt, if its files have the same checksums."""

    def have(self, file: int) -> int:
        """How many bytes of a file are here already."""
        ...

    def write(self, file: int, offset: int, data: bytes) -> None:
        """The next bytes of a file: ``offset`` is what :meth:`have` says."""
        ...

    def install(self) -> None:
        """Become the state of the snapshot, on stable storage, in one step: killed meanwhile, the old or the new.

        What has come of other snapshots is forgotten.  Raises ``DataCorrupted`` if a file does not match its checksum;
        that file is then forgotten.
        """
        ...

    def close(self) -> None: ...


class StateMachine(Protocol):
    """What the log drives; told by worker threads.  ``apply`` and ``install`` never run at the same time as each other,
    ``checkpoint``, ``snapshot`` and ``read`` may while ``apply`` does.
    """

    def position(self) -> Position:
        """Of the last command applied; (0, 0) where there is none.  Stored with the state, in the same batch."""
        ...

    def apply(self, log_index: int, term: int, command: bytes) -> object:
        """Apply one committed command; visible at once, durable after the next ``checkpoint``: the log replays it.

        Total, and the same on every replica: a bad command is an outcome (a ``VecdbError`` returned).  One that raises
        ``StorageError``, ``DataCorrupted``, ``OSError`` or ``MemoryError`` halts this replica alone; any other raised
        error must have changed nothing, and is the command's outcome.
        """
        ...

    def checkpoint(self) -> Position:
        """Put the state on stable storage; return how far it is there.  The log may be truncated to this place."""
        ...

    def snapshot(self) -> Snapshot:
        """The state of this moment, on stable storage."""
        ...

    def receive(self, position: Position, files: Sequence[SnapshotFile]) -> Incoming: ...


@runtime_checkable
class Based(Protocol):
    """A state machine whose state may come from elsewhere than its log, which then does not make it again.

    ``floor``: the last log index at which that was so, 0: never.  Entries up to it are of no use to another replica, so
    they are dropped at once, and whoever needs them gets a snapshot.
    """

    @property
    def floor(self) -> int: ...
