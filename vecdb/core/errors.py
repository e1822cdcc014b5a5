"""The errors a caller can see: small precise classes with a code, a retry hint and fields.

``code`` is the canonical status name (as in gRPC), so that an edge needs one table.  ``retryable``
says whether the same call may succeed later unchanged.  ``fields`` carries the numbers a program
needs: the argument, what was given, the limit.
"""

from typing import Any, ClassVar, Final


class VecdbError(Exception):
    """Base of every error vecdb raises on purpose."""

    code: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.fields: dict[str, Any] = fields

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.message, self.fields)


def _restore(cls: type[VecdbError], message: str, fields: dict[str, Any]) -> VecdbError:
    error = cls.__new__(cls)
    VecdbError.__init__(error, message, **fields)
    return error


class InvalidArgument(VecdbError, ValueError):
    """An argument is refused; nothing was changed.

    ``argument`` names it, ``got`` describes the value's kind, ``limit`` says what would be accepted.
    """

    code = "INVALID_ARGUMENT"

    def __init__(self, argument: str, message: str, *, got: Any = None, limit: Any = None,
                 **fields: Any) -> None:
        super().__init__(f"{argument}: {message}", argument=argument, got=got, limit=limit, **fields)

    @property
    def argument(self) -> str:
        return str(self.fields["argument"])


class DimensionMismatch(InvalidArgument):
    """Vectors have another dimension than the collection."""


class NonFiniteVector(InvalidArgument):
    """A vector holds NaN or infinity, or is zero where the metric needs a direction."""


class InvalidId(InvalidArgument):
    """An id is neither an integer 0..2**63-1 nor a non-empty string of up to 128 UTF-8 bytes."""


class InvalidMetadata(InvalidArgument):
    """Metadata is not a JSON object within the limits."""


class InvalidFilter(InvalidArgument):
    """A filter cannot be parsed or is not well typed; ``position`` is the offset in its text."""

    def __init__(self, message: str, *, position: int | None = None, got: Any = None,
                 limit: Any = None) -> None:
        where = "" if position is None else f" (at position {position})"
        super().__init__("filter", message + where, got=got, limit=limit, position=position)

    @property
    def position(self) -> int | None:
        value = self.fields["position"]
        return None if value is None else int(value)


class LimitExceeded(InvalidArgument):
    """An argument is above a limit of :mod:`vecdb.core.limits`."""


class SchemaChanged(InvalidArgument):
    """The collection was dropped and made anew with another dimension, metric or type while this call was under way.

    Nothing was changed; asked again by the schema as it is now, the call may be right or wrong.
    """

    def __init__(self, name: str) -> None:
        super().__init__("collection", f"{name!r} was made anew with another schema", got=name,
                         limit="the schema this call was checked against")


class StaleCursor(InvalidArgument):
    """The shard in which a scan stood has been split or merged, and what it had is no longer there to go on in.

    Begin the scan anew.
    """

    def __init__(self, name: str) -> None:
        super().__init__("after", f"is a place in a shard of {name!r} that was split or merged meanwhile: begin the "
                         "scan anew", got="a cursor", limit="0, or a cursor of shards that are still there",
                         collection=name)


class CollectionNotFound(VecdbError, KeyError):
    """There is no collection of that name."""

    code = "NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__(f"no collection named {name!r}", collection=name)

    def __str__(self) -> str:
        return self.message


class CollectionExists(VecdbError):
    """A collection of that name exists already, or a ``job`` is to make it."""

    code = "ALREADY_EXISTS"

    def __init__(self, name: str, job: int = 0) -> None:
        if job:
            super().__init__(f"the name {name!r} is taken: job {job} is to make it", collection=name, job=job)
        else:
            super().__init__(f"a collection named {name!r} exists already", collection=name)


class SnapshotNotFound(VecdbError):
    """There is no snapshot of that name at that place."""

    code = "NOT_FOUND"

    def __init__(self, name: str, url: str = "") -> None:
        super().__init__(f"no snapshot named {name!r}" + (f" at {url}" if url else ""), snapshot=name, url=url)


class SnapshotExists(VecdbError):
    """A snapshot of that name is at that place already."""

    code = "ALREADY_EXISTS"

    def __init__(self, name: str, url: str = "") -> None:
        super().__init__(f"a snapshot named {name!r} exists already" + (f" at {url}" if url else ""), snapshot=name,
                         url=url)


class DatabaseLocked(VecdbError):
    """Another process (or another handle in this one) has the directory open."""

    code = "FAILED_PRECONDITION"


class DatabaseClosed(VecdbError):
    """The database or collection handle was used after ``close``."""

    code = "FAILED_PRECONDITION"


class FormatMismatch(VecdbError):
    """The directory was written by a version whose format this one cannot read, or is no database."""

    code = "FAILED_PRECONDITION"


class StorageError(VecdbError):
    """The disk refused: the call changed nothing that was acknowledged before."""

    code = "UNAVAILABLE"
    retryable = True


class StorageFull(StorageError):
    """No space left on the device; reads go on, writes are refused until there is room."""

    code = "RESOURCE_EXHAUSTED"


class StorageReadOnly(StorageError):
    """The device or directory cannot be written to; reads go on."""

    code = "FAILED_PRECONDITION"
    retryable = False


class DataCorrupted(VecdbError):
    """Bytes on disk do not match their checksum; ``path`` and ``ids`` say what is affected."""

    code = "DATA_LOSS"

    def __init__(self, message: str, *, path: str, ids: tuple[int | str, ...] = (), **fields: Any) -> None:
        super().__init__(message, path=path, ids=ids, **fields)


class OutcomeUnknown(VecdbError):
    """The write may or may not have happened; a retry with the same idempotency key settles it."""

    code = "UNKNOWN"
    retryable = True


class DeadlineExceeded(VecdbError, TimeoutError):
    """The deadline passed before the work was done."""

    code = "DEADLINE_EXCEEDED"
    retryable = True


class Cancelled(VecdbError):
    """The caller gave the call up before it was done."""

    code = "CANCELLED"


class Unauthenticated(VecdbError):
    """No API key was given where one is needed, or it is unknown, expired or revoked."""

    code = "UNAUTHENTICATED"


class PermissionDenied(VecdbError):
    """The API key is good, and its role does not allow this; ``needs`` names the role that would."""

    code = "PERMISSION_DENIED"


class KeyNotFound(VecdbError):
    """There is no API key of that id."""

    code = "NOT_FOUND"


class NodeNotFound(VecdbError):
    """The cluster has no node of that name."""

    code = "NOT_FOUND"


class ShardNotFound(VecdbError):
    """The cluster has no shard of that number that calls go to: there never was one, or others took its place."""

    code = "NOT_FOUND"


class JobNotFound(VecdbError):
    """The cluster has no job of that number, or has forgotten it since it ended."""

    code = "NOT_FOUND"


class TokenNotFound(VecdbError):
    """The cluster has no join token of that id."""

    code = "NOT_FOUND"


class ShardBusy(VecdbError):
    """Another job changes the shard already; ``fields["job"]`` is its number.  Nothing was begun."""

    code = "FAILED_PRECONDITION"


UNFOUNDED: Final = "unfounded"
"""Among the fields of an Unavailable: the node's cluster is not founded, and lacks nodes that were not started."""


class Unavailable(VecdbError):
    """The server cannot be reached, or is starting or stopping."""

    code = "UNAVAILABLE"
    retryable = True


class NotLeader(Unavailable):
    """The replica asked does not lead its group; nothing was done.  ``leader`` names who does, if that is known."""

    def __init__(self, message: str, *, leader: str | None = None, **fields: Any) -> None:
        super().__init__(message, leader=leader, **fields)

    @property
    def leader(self) -> str | None:
        value = self.fields["leader"]
        return None if value is None else str(value)


class StaleShardMap(Unavailable):
    """The shard asked is no more: others took its place, by a map of ``fields["epoch"]`` or earlier.  Nothing was done;
    look up which they are, and ask them.
    """


class ShardSealed(Unavailable):
    """The shard takes no more writes: its records move to others.  Nothing was done: look up who has them, and retry.
    """


class NodeRemoved(Unavailable):
    """This node was removed from its cluster: the others refuse it until it joins anew."""

    retryable = False
    here = False
    """Whether it is this very process that another node refused; does not travel."""


class NoNodeForReplica(Unavailable):
    """No node could take a replica: too few hold any, are active and were heard of late.

    Nothing was done, and asking again is no use: add a node, or bring one back.
    """

    code = "FAILED_PRECONDITION"
    retryable = False


class JoinRefused(VecdbError):
    """A node is not taken into the cluster; nothing was changed.

    ``reason``: ``token`` (none such), ``token_expired``, ``role`` (not by this token), ``name_in_use`` (a node of the
    name is there, with another disk), ``version`` (too far from the cluster's), ``cluster`` (another one's), ``full``.
    """

    code = "PERMISSION_DENIED"

    def __init__(self, message: str, *, reason: str, **fields: Any) -> None:
        super().__init__(message, reason=reason, **fields)

    @property
    def reason(self) -> str:
        return str(self.fields["reason"])


class Overloaded(VecdbError):
    """A queue, a rate or a memory limit is full; try again after ``fields["retry_after_s"]`` seconds."""

    code = "RESOURCE_EXHAUSTED"
    retryable = True


class Unsupported(VecdbError):
    """The combination asked for is not offered; the message says which is."""

    code = "UNIMPLEMENTED"


def own_copy(error: Exception) -> Exception:
    """A copy for each of those who wait for one call, the error itself where it cannot be copied.

    A traceback grows with each raise, and callers add to fields.
    """
    reduced = error.__reduce__()
    if isinstance(reduced, tuple) and len(reduced) >= 2:
        copy = reduced[0](*reduced[1])
        if isinstance(copy, Exception):
            copy.__cause__ = error.__cause__
            return copy
    return error
