"""The shard machine: ``apply`` says what a command does, ``commit`` shows it.

``apply(log_index, command)`` reads (through :class:`Reads`, the rows as of the last commit), stages rows
where no reader looks, and returns what to write; it is total: a command that cannot be carried out is
an outcome, not an exception, and then there are no mutations but the applied log index.  The caller
writes ``Applied.mutations`` as one atomic batch and calls ``commit``; if the disk refuses it does not,
and nothing happened.  One caller at a time; readers take ``machine.view`` whenever they like.

Determinism: outcome, rids and digest depend on the commands alone, never on where segments are cut.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from vecdb.core.calls import Call, WriteToken, check
from vecdb.core.errors import DataCorrupted, InvalidArgument, LimitExceeded, ShardSealed, VecdbError
from vecdb.core.ids import RecordId, id_from_key
from vecdb.core.limits import MAX_BATCH_BYTES, MAX_BATCH_RECORDS
from vecdb.core.records import Command, DeleteIds, DeleteWhere, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema
from vecdb.segment.growing import GrowingSegment
from vecdb.segment.matching import matching_ordinals
from vecdb.segment.sealed import SealedSegment, SealedView
from vecdb.shard import codec, digest, rows
from vecdb.shard.bodies import Place, carried_out, keys_of, object_of, patched, places_of
from vecdb.shard.change import Applied, Change, Reads, Staged
from vecdb.shard.imports import MAX_HASH, Earlier, Import, Imports, Memory, Piece, Remembered
from vecdb.shard.manifest import Manifest
from vecdb.shard.marks import MarkResult, Marks
from vecdb.shard.mutations import Mutations
from vecdb.shard.rows import State
from vecdb.shard.seal import Seal, SealState, Unseal
from vecdb.shard.tokens import Tokens
from vecdb.shard.view import SegmentView, ShardView, rid_array

__all__ = ["READ_CHUNK", "Applied", "Place", "ShardMachine"]

VECTOR_BLOCK_BYTES = 1 << 20
"""Vectors of consecutive rids share a row up to this size: fewer rows to write, and to read at recovery."""
READ_CHUNK = 4_096
"""Rows asked of the store at once, and records held at once by a command that touches everything."""


class ShardMachine:
    """Segments in rid order, the last one growing; ``view`` is the moment readers pin."""

    def __init__(self, schema: CollectionSchema, reads: Reads, state: State, segments: Sequence[SegmentView],
                 growing: GrowingSegment, next_segment: int, seal_records: int, manifest: bytes | None = None,
                 tokens: Tokens | None = None, marks: Marks | None = None, seal: SealState | None = None,
                 imports: Imports | None = None, place: Place = lambda id_key, metadata, shard_key: None) -> None:
        """``place``: of records, as whoever split the collection has it."""
        self.schema = schema
        self._reads = reads
        self.seal_records = seal_records
        self._next_segment = next_segment
        self._growing = growing
        self.written_manifest = manifest
        self._tokens = tokens if tokens is not None else Tokens()
        self.marks = marks if marks is not None else Marks()
        self.seal = seal or SealState()
        self.imports = imports if imports is not None else Imports()
        self._place_of = place
        self.view = ShardView((*segments, growing.view), state)

    @property
    def growing(self) -> GrowingSegment:
        return self._growing

    @property
    def state(self) -> State:
        return self.view.state

    @property
    def wants_seal(self) -> bool:
        """Whether the growing segment is large enough to be sealed."""
        return self._growing.count >= self.seal_records

    def use(self, reads: Reads) -> None:
        """Read from another handle of the same rows."""
        self._reads = reads

    # --- commands ---------------------------------------------------------------------------------

    def apply(self, log_index: int, command: Command, *, token: WriteToken | None = None,
              call: Call | None = None, term: int = 0) -> Applied:
        """Say what ``command`` at ``log_index`` does; an index at or below the applied one does nothing.

        A command whose ``token`` was applied before, within the window, does nothing either, and its result is what it
        did then.  Of a refused command no token is kept: it did nothing, and may be tried again.
        Raises what ends ``call``; nothing has happened then.  A command from a log is applied without one.
        """
        state = self.state
        if log_index <= state.applied:
            return Applied(WriteResult(log_index=state.applied), None, Mutations(), state, Staged())
        change = Change(state)
        try:
            repeated = None if token is None else self._tokens.find(token)
            error = None
            if token is not None and self.imports.origins:
                result = self._by_pieces(change, command, token, log_index, call)
            else:
                if repeated is None and self.seal.sealed:
                    raise self.seal.refusal()
                result = repeated or replace(self._dispatch(change, command, call), log_index=log_index)
                if token is not None and repeated is None:
                    change.staged.token = self._tokens.remember(change.mutations, log_index, token, result)
                    change.staged.write = Remembered(token.key, token.fingerprint, result.counts)
        except (InvalidArgument, ShardSealed) as refused:  # the command's own fault; a disk's is no outcome and goes up
            change = Change(state)
            result, error = WriteResult(log_index=log_index), refused
        return self._applied(change, log_index, term, result, error)

    def refuses(self, command: bytes) -> bool:
        """Whether a sealed shard would refuse it, as far as can be told by looking at it: any thread may ask."""
        key = codec.key_of_write(command)
        return key is not None and not (key and (key in self._tokens or key in self.imports))

    def _by_pieces(self, change: Change, command: Command, token: WriteToken, log_index: int,
                   call: Call | None) -> WriteResult:
        """A write with a key, in a shard that was filled from others: what of it was not done before."""
        earlier, here = self.imports.find(token), self._tokens.pieces(token.key)
        first = self._tokens.find(token)
        known = Earlier((*here, *(() if earlier is None else earlier.pieces)), self.imports.shard_key,
                        first.log_index if first is not None else 0 if earlier is None else earlier.log_index)
        places = places_of(command, self._place_of, self.imports.shard_key)
        if known.pieces:
            change.earlier = known
        left = None if places is None else [one for one in places if not known.done_for(one)]
        if known.pieces and (known.covers(*self.imports.span) if left is None else not left):
            return known.answer(places, None, log_index)
        if self.seal.sealed:
            raise self.seal.refusal()
        counts = self._dispatch(change, command, call).counts
        fresh = Piece(min(left), max(left), counts) if left else Piece(0, MAX_HASH, counts, whole=True)
        result = replace(known.answer(places, fresh, log_index), log_index=log_index)
        change.staged.token = self._tokens.remember(change.mutations, log_index, token, result, (*here, fresh))
        change.staged.write = Remembered(token.key, token.fingerprint, counts, fresh.lo, fresh.last, not fresh.whole)
        if known.pieces:
            change.staged.part = carried_out(command, change.staged.ids, change.mutations)
        change.staged.imports = self.imports.make_room(change.mutations, len(self._tokens) + 1)
        return result

    def take(self, log_index: int, term: int, piece: Import) -> tuple[Applied, bool]:
        """The next command of a piece, and whether there is another one; see :mod:`vecdb.shard.imports`.

        The log index is the state's after the last one.
        """
        state = self.state
        if log_index <= state.applied:
            return Applied(WriteResult(log_index=state.applied), None, Mutations(), state, Staged()), False
        try:
            done = self.imports.begin(piece)
            if self.seal.sealed:
                raise self.seal.refusal()
            change, result, memories = Change(state), WriteResult(), () if done else piece.memories
            if done is not None and done < len(piece.commands):
                command, token = codec.decode(piece.commands[done])
                if isinstance(command, DeleteWhere) or (piece.shard_key and not isinstance(command, UpsertBatch)):
                    change.earlier = Earlier.of_others(piece)
                result = self._dispatch(change, command, None)
                own = None if token is None else self.imports.own_of(
                    piece, token, places_of(command, self._place_of, piece.shard_key))
                if own is not None:
                    memories = (Memory(piece.source, (replace(own, counts=result.counts),)),)
        except (InvalidArgument, ShardSealed) as refused:
            return self.refuse(log_index, term, refused), False
        if done is None:
            return self._applied(change, log_index, term, WriteResult(log_index=log_index), None), False
        more = done + 1 < len(piece.commands)
        staged = change.staged.imports = self.imports.progress(change.mutations, piece, done + 1 if more else None)
        self.imports.remember(change.mutations, staged, log_index, piece, memories)
        where = (state.applied, state.term) if more else (log_index, term)
        return self._applied(change, *where, replace(result, log_index=where[0]), None), more

    def mark(self, log_index: int, term: int) -> Applied:
        """Note what the shard is at ``log_index``; an index at or below the applied one does nothing."""
        state = self.state
        if log_index <= state.applied:
            return Applied(WriteResult(log_index=state.applied), None, Mutations(), state, Staged())
        change = Change(state)
        mark = MarkResult(log_index, term, state.records, f"{state.digest:032x}")
        self.marks.add(change.mutations, mark)
        return self._applied(change, log_index, term, WriteResult(log_index=log_index), None, mark)

    def set_seal(self, log_index: int, term: int, command: Seal | Unseal) -> Applied:
        """End writes, or let them go on; an index at or below the applied one does nothing.  A seal is a mark too."""
        if log_index <= self.state.applied:
            return Applied(WriteResult(log_index=self.state.applied), None, Mutations(), self.state, Staged())
        try:
            after = self.seal.after(command, log_index)
        except (InvalidArgument, ShardSealed) as error:
            return self.refuse(log_index, term, error)
        change = Change(self.state)
        change.staged.seal = after
        change.mutations.puts.append((rows.SEAL_KEY, after.to_bytes()))
        mark = None
        if isinstance(command, Seal):
            mark = MarkResult(log_index, term, self.state.records, f"{self.state.digest:032x}")
            self.marks.add(change.mutations, mark)
        return self._applied(change, log_index, term, WriteResult(log_index=log_index), None, mark)

    def refuse(self, log_index: int, term: int, error: VecdbError) -> Applied:
        """Of a command that cannot be read, or carried out here, only its place in the log remains; at or below the
        applied one not even that.
        """
        if log_index <= self.state.applied:
            return Applied(WriteResult(log_index=self.state.applied), error, Mutations(), self.state, Staged())
        return self._applied(Change(self.state), log_index, term,
                             WriteResult(log_index=log_index), error)

    def _applied(self, change: Change, log_index: int, term: int, result: WriteResult, error: VecdbError | None,
                 mark: MarkResult | None = None) -> Applied:
        state, staged = change.state, change.staged
        total = (state.digest + digest.total(change.added) - digest.total(change.buried)) % digest.MODULUS
        after = State(log_index, state.next_rid + len(staged.ids),
                      state.records + len(staged.ids) - len(staged.dead), total, term)
        change.mutations.puts.append((rows.STATE_KEY, after.to_bytes()))
        manifest = self.manifest().to_bytes()
        if manifest != self.written_manifest:
            change.mutations.puts.append((rows.MANIFEST_KEY, manifest))
        return Applied(result, error, change.mutations, after, staged, manifest, mark)

    def commit(self, applied: Applied) -> None:
        """Publish what was applied; call it after its mutations are written, in log order."""
        staged = applied.staged
        views = list(self.view.segments)
        dead = rid_array(staged.dead)
        gone = np.empty(0, np.int64)
        for place, view, _, ordinals in self.view.locate(dead):
            if view is views[-1]:
                gone = ordinals
            elif isinstance(view, SealedView):
                views[place] = view.without(ordinals)
            else:
                view.segment.publish((), (), ordinals)
                views[place] = view.segment.view
        self._growing.publish(staged.ids, staged.metadata, gone)
        views[-1] = self._growing.view
        if staged.token is not None:
            self._tokens.commit(staged.token)
        if staged.imports is not None:
            self.imports.commit(staged.imports)
        if staged.seal is not None:
            self.seal = staged.seal
        if applied.mark is not None:
            self.marks.commit(applied.mark)
        if applied.manifest is not None:
            self.written_manifest = applied.manifest
        self.view = ShardView(tuple(views), applied.state)

    def _dispatch(self, change: Change, command: codec.LogCommand, call: Call | None) -> WriteResult:
        match command:
            case UpsertBatch():
                return self._upsert(change, command)
            case DeleteIds():
                return self._delete(change, command.ids)
            case DeleteWhere():
                return self._delete_where(change, command, call)
            case UpdateMetadata():
                return self._update_metadata(change, command)
            case _:
                raise InvalidArgument("command", f"unknown kind {type(command).__name__}", got=type(command).__name__,
                                      limit="UpsertBatch, DeleteIds, DeleteWhere, UpdateMetadata")

    def _upsert(self, change: Change, batch: UpsertBatch) -> WriteResult:
        self._check_batch(batch)
        ids, vectors, metadata = batch.ids, batch.vectors, batch.metadata
        keys = keys_of(ids)
        last = {key: position for position, key in enumerate(keys)}
        if len(last) != len(keys):
            keep = sorted(last.values())
            ids, keys = tuple(ids[p] for p in keep), [keys[p] for p in keep]
            vectors, metadata = vectors[keep], tuple(metadata[p] for p in keep)
        if change.earlier is not None:
            keep = [p for p, key in enumerate(keys) if not self._is_done(change, key, metadata[p])]
            ids, keys = tuple(ids[p] for p in keep), [keys[p] for p in keep]
            vectors, metadata = vectors[keep], tuple(metadata[p] for p in keep)
        updated = 0
        for rid, record in self._living(keys):
            if record is not None:
                change.bury(rid, record)
                updated += 1
        self._append(change, ids, keys, np.ascontiguousarray(vectors), metadata)
        return WriteResult(inserted=len(ids) - updated, updated=updated)

    def _check_batch(self, batch: UpsertBatch) -> None:
        count = len(batch.ids)
        if count > MAX_BATCH_RECORDS or batch.vectors.nbytes > MAX_BATCH_BYTES:
            raise LimitExceeded("vectors", f"a batch of {count} records and {batch.vectors.nbytes} bytes is above "
                                f"{MAX_BATCH_RECORDS} records or {MAX_BATCH_BYTES} bytes",
                                got=count, limit=MAX_BATCH_RECORDS)
        space = self._growing.space
        if batch.vectors.shape != (count, space.row_items) or batch.vectors.dtype != space.row_dtype:
            raise InvalidArgument("vectors", f"a batch of {batch.vectors.shape} {batch.vectors.dtype} does not fit "
                                  f"({count}, {space.row_items}) {space.row_dtype}",
                                  got=str(batch.vectors.shape), limit=f"({count}, {space.row_items})")
        if len(batch.metadata) != count:
            raise InvalidArgument("metadata", f"{len(batch.metadata)} objects for {count} ids",
                                  got=len(batch.metadata), limit=count)

    def _append(self, change: Change, ids: Sequence[RecordId], keys: Sequence[bytes], vectors: npt.NDArray[Any],
                metadata: Sequence[bytes]) -> None:
        """Stage new versions and the rows that make them durable."""
        if not len(ids):
            return
        if self._growing.count + len(ids) > self._growing.capacity:
            self.freeze()
        first = change.state.next_rid + len(change.staged.ids)
        self._growing.stage(first - self._growing.first_rid, vectors)
        puts, added = change.mutations.puts, change.added
        raw = vectors.reshape(-1).view(np.uint8).data
        width = vectors.shape[1] * vectors.itemsize
        at = 0
        for key, body, rid in zip(keys, metadata, rows.packed_rids(first, len(ids)), strict=True):
            head = rows.sized(key)
            mark = digest.digest_of_row(head, raw[at : at + width], body)
            at += width
            added.append(mark)
            puts.append((rows.ID + key, rid))
            puts.append((rows.RECORD + rid, b"".join((mark, head, body))))
        step = max(1, VECTOR_BLOCK_BYTES // width)
        for start in range(0, len(ids), step):
            puts.append((rows.vector_row(first + start), bytes(raw[start * width : (start + step) * width])))
        change.staged.ids.extend(ids)
        change.staged.metadata.extend({} if body == b"{}" else object_of(body) for body in metadata)

    def _delete(self, change: Change, ids: Sequence[RecordId]) -> WriteResult:
        keys = list(dict.fromkeys(keys_of(ids)))
        deleted = missing = 0
        for key, (rid, record) in zip(keys, self._living(keys), strict=True):
            if change.earlier is not None and self._is_done(change, key, _metadata(record)):
                continue
            missing += record is None
            if record is not None:
                change.bury(rid, record)
                change.mutations.deletes.append(rows.id_row(key))
                deleted += 1
        return WriteResult(deleted=deleted, missing=missing)

    def _is_done(self, change: Change, key: bytes, metadata: bytes) -> bool:
        """Whether the command was carried out for a record before that came here."""
        earlier = change.earlier
        return earlier is not None and earlier.done_for(self._place_of(key, metadata, earlier.shard_key))

    def _delete_where(self, change: Change, command: DeleteWhere, call: Call | None) -> WriteResult:
        deleted = 0
        for view in self.view.segments:
            ordinals = matching_ordinals(view, command.filter, self.read_metadata, call)
            rids = view.rids(ordinals).tolist()
            for start in range(0, len(rids), READ_CHUNK):
                check(call)
                chunk = rids[start : start + READ_CHUNK]
                for rid, record in zip(chunk, self.read_records(chunk), strict=True):
                    if record is None or (change.earlier is not None and self._is_done(
                            change, rows.record_id_key(record), _metadata(record))):
                        continue
                    change.bury(rid, record)
                    change.mutations.deletes.append(rows.id_row(rows.record_id_key(record)))
                    deleted += 1
        return WriteResult(deleted=deleted)

    def _update_metadata(self, change: Change, command: UpdateMetadata) -> WriteResult:
        keys = keys_of(command.ids)
        space = self._growing.space
        most = min(MAX_BATCH_RECORDS, max(1, MAX_BATCH_BYTES // (space.row_items * space.row_dtype.itemsize)))
        if len(keys) > most or len(command.patch) != len(keys):
            raise LimitExceeded("ids", f"an update of {len(keys)} records with {len(command.patch)} patches; at most "
                                f"{most} records, one patch each", got=len(keys), limit=most)
        patches: dict[bytes, list[bytes]] = {}
        for key, patch in zip(keys, command.patch, strict=True):
            patches.setdefault(key, []).append(patch)
        moved: list[tuple[bytes, int, bytes, bytes]] = []
        missing = 0
        for key, (rid, record) in zip(patches, self._living(list(patches)), strict=True):
            if change.earlier is not None and self._is_done(change, key, _metadata(record)):
                continue
            missing += record is None
            if record is not None:
                body = patched(rows.record_metadata(record), patches[key], command.merge)
                moved.append((key, rid, record, body))
        if moved:
            vectors, readable = self.view.vectors(rid_array([rid for _, rid, _, _ in moved]), space.row_items,
                                                  space.row_dtype)
            if not readable.all():
                lost = tuple(id_from_key(moved[int(p)][0]) for p in np.flatnonzero(~readable))
                raise DataCorrupted("the vectors of some records are damaged, so these records cannot be rewritten",
                                    path="vectors", ids=lost)
            for _, rid, record, _ in moved:
                change.bury(rid, record)
            moved_keys = [key for key, _, _, _ in moved]
            self._append(change, [id_from_key(key) for key in moved_keys], moved_keys, vectors,
                         [body for _, _, _, body in moved])
        return WriteResult(updated=len(moved), missing=missing)

    # --- reads ------------------------------------------------------------------------------------

    def _living(self, keys: Sequence[bytes]) -> list[tuple[int, bytes | None]]:
        """For each id key its rid and record row; ``(-1, None)`` where there is no such record."""
        out: list[tuple[int, bytes | None]] = [(-1, None)] * len(keys)
        found = [(position, rows.unpack_rid(value))
                 for position, value in enumerate(self._reads.multi_get([rows.id_row(key) for key in keys]))
                 if value is not None]
        records = self.read_records([rid for _, rid in found])
        for (position, rid), record in zip(found, records, strict=True):
            out[position] = (rid, record)
        return out

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Rows by key."""
        return self._reads.multi_get(keys)

    def read_records(self, rids: Sequence[int]) -> list[bytes | None]:
        """Record rows of rids, None where that version is gone."""
        out: list[bytes | None] = []
        for start in range(0, len(rids), READ_CHUNK):
            out += self._reads.multi_get([rows.record_row(rid) for rid in rids[start : start + READ_CHUNK]])
        return out

    def read_metadata(self, rids: npt.NDArray[np.int64]) -> list[dict[str, Any] | None]:
        """Metadata of rids, None where that version is gone."""
        return [None if record is None else orjson.loads(rows.record_metadata(record))
                for record in self.read_records(rids.tolist())]

    # --- segments ---------------------------------------------------------------------------------

    def manifest(self) -> Manifest:
        return Manifest.of(self.view.segments, self._next_segment)

    def freeze(self) -> None:
        """Close the growing segment to writes and start another; the next batch writes the manifest."""
        old = self._growing
        if old.count == 0:
            return
        old.frozen = True
        self._growing = GrowingSegment(self._next_segment, old.first_rid + old.count, self.schema, old.capacity)
        self._next_segment += 1
        self.view = ShardView((*self.view.segments, self._growing.view), self.view.state)

    def let_go(self) -> None:
        """Hold no segment any more: only the state remains to be told."""
        self._growing = GrowingSegment(self._next_segment, self.state.next_rid, self.schema, 1)
        self.view = ShardView((self._growing.view,), self.view.state)

    def take_segment_id(self) -> int:
        """A number no segment has had."""
        taken = self._next_segment
        self._next_segment += 1
        return taken

    def replacement(self, old: Sequence[SegmentView], new: SealedSegment | None
                    ) -> tuple[Mutations, Callable[[], None]]:
        """What to write when ``new`` takes the place of ``old`` (pinned by the job), and the step that shows it.

        Records that died since the job pinned its views die in ``new`` too.
        """
        mutations = Mutations()
        places = [self._place(view) for view in old]
        first, last = places[0], places[-1]
        start, stop = self.view.segments[first].rid_range[0], self.view.segments[last].rid_range[1]
        segments: list[SegmentView] = list(self.view.segments)
        fresh: list[SegmentView] = []
        still_dead = np.empty(0, np.int64)
        if new is not None:
            living = np.concatenate([segments[p].live_rids() for p in places])
            ordinals = np.flatnonzero(~np.isin(new.rids, living, kind="sort"))
            still_dead = new.rids[ordinals].astype(np.int64)
            fresh = [new.view.without(ordinals)]
        segments[first : last + 1] = fresh
        mutations.ranges += [(rows.dead_row(start), rows.dead_row(stop)),
                             (rows.vector_row(start), rows.vector_row(stop))]
        mutations.puts += [(rows.dead_row(rid), b"") for rid in still_dead.tolist()]
        manifest = Manifest.of(segments, self._next_segment).to_bytes()
        mutations.puts.append((rows.MANIFEST_KEY, manifest))

        def show() -> None:
            self.written_manifest = manifest
            self.view = ShardView(tuple(segments), self.view.state)

        return mutations, show

    def _place(self, pinned: SegmentView) -> int:
        for place, view in enumerate(self.view.segments):
            if view.segment is pinned.segment:
                return place
        raise VecdbError(f"{pinned.segment.name} is no longer part of the shard")


def _metadata(record: bytes | None) -> bytes:
    return b"{}" if record is None else rows.record_metadata(record)
