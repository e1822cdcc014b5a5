"""One shard, alive: writes under a lock and group commit, queries on pinned views, recovery after a disk refused.

**A write**: lock, ``machine.apply``, one batch to the store, ``machine.commit`` publishes, unlock, ``sync`` (an fsync
shared by all who wait), acknowledge.

**A refusal**: after a write or sync that failed nobody knows what of it is on the disk, and the store takes no more.
The next write opens the store anew and takes its word: if state and manifest are what the machine last wrote, it
goes on; if the unknown batch is there, the machine is rebuilt from the rows.  If the store cannot be opened for writing
it is opened for reading, so that answers go on.

**Replicated**, the log of the shard's group is the writer: ``apply`` takes its commands one by one, shows them at once
and leaves their durability to the log, which brings back what the store, which then has no log of its own, loses.  So
a store that failed is never opened anew behind the log's back: the service ends, and whoever drives the log opens
another.

**A read** takes ``machine.view`` and waits for nobody, but for a store that is being opened anew, and after three
answers that were overtaken by writes.

**A call that is ended** stops where it is: kernels, filters and reads look at its ``stop``, and what they had is thrown
away.  A write looks until it is applied; from then on it is carried out and acknowledged, late or not.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from vecdb.ann.space import Space
from vecdb.core.calls import Call, WriteToken, check
from vecdb.core.errors import (
    CollectionNotFound,
    DatabaseClosed,
    DataCorrupted,
    InvalidArgument,
    OutcomeUnknown,
    SchemaChanged,
    StorageError,
    StorageReadOnly,
    Unavailable,
    VecdbError,
)
from vecdb.core.filters.tree import Node
from vecdb.core.ids import RecordId
from vecdb.core.query import QueryRequest, QueryResult, ScanPage, ScanRequest
from vecdb.core.records import Command, Record, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema, collection_of
from vecdb.ports.clock import Clock
from vecdb.ports.compute import Compute
from vecdb.ports.store import Store
from vecdb.segment.files import from_os_error
from vecdb.segment.matching import StaleView
from vecdb.services import reads
from vecdb.services.answer import answer
from vecdb.services.following import Follow, FollowLimits, Told
from vecdb.services.recovery import ROWS, first_rows, link_segments, recover
from vecdb.services.settings import EngineSettings
from vecdb.services.verify import Verification, verify
from vecdb.shard import codec, rows
from vecdb.shard.adoption import Adopt, adopted_before
from vecdb.shard.bodies import written
from vecdb.shard.imports import Import
from vecdb.shard.machine import Applied, ShardMachine
from vecdb.shard.marks import Mark, MarkResult
from vecdb.shard.mutations import Mutations
from vecdb.shard.rows import State
from vecdb.shard.seal import Seal, Unseal
from vecdb.shard.view import ShardView

T = TypeVar("T")
LOOK_AGAIN_S = 0.05
"""How long a write that waits for others sleeps before it looks whether its caller still waits."""
OPTIMISTIC_TRIES = 3
"""Answers that may be overtaken by writes before writers are held off for one."""


class OpenShardStore(Protocol):
    def __call__(self, *, read_only: bool) -> Store: ...


class ShardService:
    """The only writer of its store and directory.  Safe to use from many threads."""

    def __init__(self, schema: CollectionSchema, directory: Path, open_store: OpenShardStore, compute: Compute,
                 settings: EngineSettings, clock: Clock) -> None:
        self.schema = schema
        self._shape = schema.shape
        self.directory = directory
        self._open_store = open_store
        self._compute = compute
        self._settings = settings
        self._clock = clock
        space = Space(schema.metric, schema.vector_type, schema.dim)
        self._row = ((space.row_items,), space.row_dtype)
        self._lock = threading.RLock()
        self._store = open_store(read_only=settings.read_only)
        self._broken = False
        self._closed = False
        self._dropped = False
        self._recovered_at = -1
        self._followers: tuple[Follow, ...] = ()
        self.before_write: Callable[[Call | None], None] = lambda call: None
        self.before_apply: Callable[[int], None] = lambda bytes_: None
        self.check_room: Callable[[], None] = lambda: None
        self.on_change: Callable[[], None] = lambda: None
        try:
            self.machine = self._recover()
        except BaseException:
            self._store.close()
            raise

    # --- writes -----------------------------------------------------------------------------------

    def write(self, command: Command, call: Call | None = None) -> WriteResult:
        """Carry out one command; durable when this returns.  A call that was ended before it is applied does nothing;
        one whose token was applied before is answered with what it did then.

        Raises what the command is refused for, :class:`~vecdb.core.errors.StorageError` if the disk refuses (then
        nothing is shown, and what was acknowledged before is safe), ``OutcomeUnknown``, ``Overloaded``.
        """
        if self._settings.read_only:
            raise StorageReadOnly("the database was opened read-only", path=str(self.directory))
        if self._settings.replicated:
            raise StorageReadOnly("the shard is replicated: its log is its only writer", path=str(self.directory))
        check(call)
        if isinstance(command, UpsertBatch):
            self._check_shape(command.shape)
        self.before_write(call)
        with self.writing(call):
            applied = self.machine.apply(self.machine.state.applied + 1, command, call=call,
                                         token=None if call is None else call.token)
            store = self._store
            try:
                store.write(applied.mutations)
            except VecdbError:
                self._broken = True
                if applied.error is None:
                    raise
            else:
                self.machine.commit(applied)
        if applied.error is not None:
            raise applied.error
        self._sync(store, applied)
        self.on_change()
        return applied.result

    def _sync(self, store: Store, applied: Applied) -> None:
        try:
            store.sync()
        except VecdbError as error:
            with self._lock:
                if self._store is store:
                    self._broken = True
                elif not self._closed and not self._broken and applied.state.applied <= self._recovered_at:
                    self._store.sync()  # another writer's failure had the store opened anew, and our batch was there
                    return
            if isinstance(error, DatabaseClosed):
                raise OutcomeUnknown("the store was opened anew before the write was synced",
                                     path=str(self.directory)) from None
            raise

    def apply(self, log_index: int, term: int, command: bytes, *,
              forgives: bool = False) -> WriteResult | MarkResult | VecdbError:
        """Apply a command of the log: visible when this returns, durable after the next :meth:`sync`.

        What the command is refused for is returned.  Raises ``StorageError`` or ``DataCorrupted`` where the disk
        refuses or is damaged: then this service applies nothing more.  ``forgives``: a command that needs what is
        damaged is refused instead.  There is no other replica to be made good by, and the log would bring the command
        back for ever.
        """
        self.before_apply(len(command))
        refused: VecdbError | None = None
        try:
            decoded, token = codec.decode(command)
        except InvalidArgument as error:
            refused = error
        with self._lock:
            self._check_whole()
            machine = self.machine
            try:
                if refused is not None:
                    applied = machine.refuse(log_index, term, refused)
                elif isinstance(decoded, Mark):
                    applied = machine.mark(log_index, term)
                elif isinstance(decoded, Seal | Unseal):
                    applied = machine.set_seal(log_index, term, decoded)
                elif isinstance(decoded, Adopt):  # of one that is untouched the replica takes care, not its state
                    applied = adopted_before(machine, log_index, term, decoded)
                else:
                    applied = self._carried_out(machine, log_index, term, decoded, token, forgives)
            except (VecdbError, OSError, MemoryError):
                self._broken = True
                raise
            self._commit(machine, applied)
            for follower in self._followers:
                follower.applied(log_index, self._told(log_index, command, applied, follower.moving) if applied.changes
                                 else None)
        with suppress(VecdbError):  # what follows from it is upkeep's, and not the command's
            self.on_change()
        return applied.error or applied.mark or applied.result

    def _carried_out(self, machine: ShardMachine, log_index: int, term: int, command: Command | Import,
                     token: WriteToken | None, forgives: bool) -> Applied:
        try:
            if isinstance(command, Import):
                return self._imported(machine, log_index, term, command)
            return machine.apply(log_index, command, token=token, term=term)
        except StaleView as error:
            damage = DataCorrupted("a record's row is missing from the store", path=str(self.directory))
            damage.__cause__ = error
        except DataCorrupted as error:
            damage = error
        if not forgives:
            raise damage
        return machine.refuse(log_index, term, damage)

    def _imported(self, machine: ShardMachine, log_index: int, term: int, piece: Import) -> Applied:
        """The last of a piece's commands; those before it are shown."""
        for follower in self._followers:
            follower.end(Unavailable("the shard is being filled"))
        applied, more = machine.take(log_index, term, piece)
        while more:
            self._commit(machine, applied)
            applied, more = machine.take(log_index, term, piece)
        return applied

    def _commit(self, machine: ShardMachine, applied: Applied) -> None:
        """Write and show it; where that ends halfway this service is done for."""
        try:
            if applied.mutations.puts:
                self._store.write(applied.mutations)
            machine.commit(applied)
        except VecdbError:
            self._broken = True
            raise
        except Exception as error:
            self._broken = True
            raise StorageError(f"a command was written and could not be shown: {type(error).__name__}",
                               path=str(self.directory)) from error

    def sync(self) -> State:
        """Make durable what was applied; return the state as of the call."""
        self.check_open()
        state = self.machine.state
        try:
            self._store.sync()
        except VecdbError:
            self._broken = True
            raise
        return state

    def copy(self, target: Path) -> ShardView:
        """A copy of this moment in a folder that must not exist, by hard links: rows, and sealed segments as far as
        they are whole.  Nothing is applied meanwhile, for some hundredths of a second.
        """
        self.sync()  # so that little is left to be flushed where everybody waits for it
        with self._lock:
            self._check_whole()
            kept = self._store.multi_get([rows.STATE_KEY, rows.MANIFEST_KEY])
            if kept == [None, None] and not self._settings.read_only:
                self.write_rows(first_rows())  # of an empty one, too, a copy says that it is that, and not lost
            try:
                self._store.checkpoint(target / ROWS)
                view = self.machine.view
                link_segments(view, target)
            except OSError as error:
                raise from_os_error(error, target, "copying the shard to") from error
            return view

    def _told(self, log_index: int, command: bytes, applied: Applied, moving: bool) -> Told:
        """What who follows is told of a command that did something."""
        staged, part = applied.staged, applied.staged.part
        if moving:
            decoded, _ = codec.decode(command)
            if isinstance(decoded, UpdateMetadata) and not decoded.merge:
                space = self.machine.growing.space
                part = written(staged.ids, applied.mutations, space.row_items, space.row_dtype)
        return Told(log_index, (command,) if part is None else tuple(map(codec.encode, part)), staged.write)

    def follow(self, limits: FollowLimits | None = None, *, moving: bool = False) -> Follow:
        """The records of this moment, and every change the log brings after it; to be closed.  ``moving``: for several
        shards, by a value that metadata has: what is replaced is told with its vectors, as it may be another's then.
        """
        with self._lock:
            self._check_whole()
            follow = Follow(self.machine, self._store, self.directory, limits or FollowLimits(), self._unfollow, moving)
            self._followers = (*self._followers, follow)
            return follow

    def _unfollow(self, follow: Follow) -> None:
        with self._lock:
            self._followers = tuple(one for one in self._followers if one is not follow)

    def read_rows(self) -> None:
        """Read every row once, some million in a second, as a store finds a damaged block only when it is read;
        ``DataCorrupted``.
        """
        deque(self._store.scan(b"", b"\xff"), maxlen=0)

    def _check_whole(self) -> None:
        self.check_open()
        if self._broken:
            raise StorageError("the shard's store failed, and has to be opened anew", path=str(self.directory))

    @contextmanager
    def writing(self, call: Call | None = None) -> Iterator[None]:
        """The write lock over a machine that agrees with its store; waiting for it ends with ``call``."""
        if call is not None:
            while not self._lock.acquire(timeout=LOOK_AGAIN_S):
                call.check()
        else:
            self._lock.acquire()
        try:
            check(call)
            self.check_open()
            if self._settings.replicated:
                self._check_whole()
            elif self._broken:
                self._mend()
            yield
        finally:
            self._lock.release()

    def _mend(self) -> None:
        """Open the store again and take its word for what was written."""
        self._store.close()
        try:
            store = self._open_store(read_only=False)
        except VecdbError:
            self._store = self._open_store(read_only=True)
            self.machine.use(self._store)
            raise
        self._store = store
        state_row, manifest_row = store.multi_get([rows.STATE_KEY, rows.MANIFEST_KEY])
        state = rows.State() if state_row is None else rows.State.from_bytes(state_row)
        if state == self.machine.state and manifest_row == self.machine.written_manifest:
            self.machine.use(store)
        else:
            self.machine = self._recover()
        self._recovered_at = state.applied
        self._broken = False

    def _recover(self) -> ShardMachine:
        return recover(self.schema, self.directory, self._store, self._settings, self._compute)

    def write_rows(self, mutations: Mutations) -> None:
        """Write a maintenance batch, inside :meth:`writing`; if it fails its outcome is unknown.

        Durable when this returns; replicated, after :meth:`settle`.
        """
        try:
            self._store.write(mutations)
            if not self._settings.replicated:
                self._store.sync()
        except VecdbError:
            self._broken = True
            raise

    def settle(self) -> None:
        """Return once every batch of maintenance is durable: what they let go of may be deleted.

        Outside :meth:`writing`: replicated, it writes whole memtables.
        """
        if self._settings.replicated:
            self.sync()

    def compact(self, start: bytes, stop: bytes) -> None:
        """Give back the space of rows deleted in ``[start, stop)``."""
        try:
            self._store.compact(start, stop)
        except DatabaseClosed:
            return  # space is given back by a later one
        except VecdbError:
            self._broken = True
            raise

    # --- reads ------------------------------------------------------------------------------------

    @property
    def view(self) -> ShardView:
        return self.machine.view

    def query(self, request: QueryRequest, call: Call | None = None) -> QueryResult:
        """Answer a batch of queries, split over the pool's threads when there are many."""
        self._check_shape(request.shape)
        shape, dtype = self._row
        if request.vectors.shape[1:] != shape or request.vectors.dtype != dtype:
            raise InvalidArgument("vector", f"{request.vectors.shape} {request.vectors.dtype} does not fit "
                                  f"(n, {shape[0]}) {dtype}", got=str(request.vectors.shape), limit=f"(n, {shape[0]})")
        if request.profile:
            return self._profiled(request, call)
        return self._answer(request, call)

    def _check_shape(self, shape: int) -> None:
        """The caller may have checked against a collection of this name that is gone."""
        if shape and shape != self._shape:
            raise SchemaChanged(collection_of(self.schema.name))

    def _answer(self, request: QueryRequest, call: Call | None) -> QueryResult:
        check(call)
        machine = self.machine
        try:
            return answer(machine.view, request, machine, self._compute, call)
        except (StaleView, DatabaseClosed):
            return self._reading(call, lambda machine: answer(machine.view, request, machine, self._compute, call))

    def _profiled(self, request: QueryRequest, call: Call | None) -> QueryResult:
        began = self._clock.monotonic()
        result = self._answer(request, call)
        assert result.cost is not None
        spent_ms = (self._clock.monotonic() - began) * 1e3
        return replace(result, cost=replace(result.cost, compute_ms=spent_ms))

    def fetch(self, ids: Sequence[RecordId], *, include_metadata: bool, include_vectors: bool,
              call: Call | None = None) -> list[Record]:
        """The records that exist, in the order asked; ``DataCorrupted`` names those with damaged vectors."""
        return self._reading(call, lambda machine: reads.fetch(
            machine, self.directory, ids, include_metadata=include_metadata, include_vectors=include_vectors,
            call=call))

    def scan(self, request: ScanRequest, call: Call | None = None) -> ScanPage:
        return self._reading(call, lambda machine: reads.scan(machine, self.directory, request, call))

    def count(self, where: Node | None, call: Call | None = None) -> int:
        return self._reading(call, lambda machine: reads.count(machine, where, call))

    def verify(self, call: Call | None = None) -> dict[str, Any]:
        """Read every record and compare digests: see :func:`vecdb.services.verify.verify`."""
        so_far = Verification()
        for _ in range(OPTIMISTIC_TRIES):
            try:
                return verify(self.machine, so_far, call, settled=False)
            except StaleView:
                continue
            except DatabaseClosed:
                break
        with self.writing():
            return verify(self.machine, so_far, call, settled=True)

    def _reading(self, call: Call | None, read: Callable[[ShardMachine], T]) -> T:
        """Run a read on the machine of the moment; again if writes overtook it or the store was opened anew."""
        for _ in range(OPTIMISTIC_TRIES):
            check(call)
            try:
                return read(self.machine)
            except StaleView:
                continue
            except DatabaseClosed:
                break
        with self._lock:
            if self._closed:
                raise self._gone()
            try:
                return read(self.machine)
            except StaleView as error:
                raise StorageError("a record's row is missing from the store", path=str(self.directory)) from error

    def check_open(self) -> None:
        """Raise ``CollectionNotFound`` or ``DatabaseClosed`` if the shard was dropped or closed."""
        if self._closed:
            raise self._gone()

    def _gone(self) -> VecdbError:
        if self._dropped:
            return CollectionNotFound(collection_of(self.schema.name))
        return DatabaseClosed("the database is closed")

    @property
    def steady(self) -> bool:
        """Whether the store is open and took its last write: reads of the view wait for nothing."""
        return not self._broken and not self._closed

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self, *, dropped: bool = False) -> None:
        """Let go of the store; calls still running end with DatabaseClosed, or if dropped CollectionNotFound."""
        with self._lock:
            self._closed, self._dropped = True, dropped
            for follower in self._followers:
                follower.end(self._gone())
            self._followers = ()
            self.before_write, self.on_change = lambda call: None, lambda: None  # let go of the maintainer
            self.before_apply, self.check_room = lambda bytes_: None, lambda: None
            self._store.close()

    def let_go(self) -> None:
        """Close, and keep nothing in memory but what is told of the state; views pinned elsewhere stay."""
        self.close()
        self.machine.let_go()
