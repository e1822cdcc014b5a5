"""What a shard must be after each entry of its log: the judge's own, a dictionary and nothing else.

No segment, no index, no row: records by id, replaced, patched and deleted as the commands say.  It keeps what it was at
every log index, so that whatever a replica answers can be held against the place it answered at.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from vecdb.core.errors import InvalidArgument
from vecdb.core.filters import Node, evaluate
from vecdb.core.ids import RecordId, id_key
from vecdb.core.query import Matches, QueryRequest
from vecdb.core.records import Command, DeleteIds, DeleteWhere, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.shard import codec
from vecdb.shard.adoption import Adopt
from vecdb.shard.digest import MODULUS, digest_of
from vecdb.shard.imports import Import
from vecdb.shard.marks import Mark
from vecdb.shard.seal import Seal, Unseal

TOLERANCE = 1e-4
"""Between a float32 kernel's distance and float64's."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A record: ``vector`` as bytes of float32, ``metadata`` as the JSON a replica must hold."""

    vector: bytes
    metadata: bytes

    @property
    def fields(self) -> dict[str, Any]:
        value: dict[str, Any] = orjson.loads(self.metadata)
        return value


@dataclass(frozen=True, slots=True)
class Moment:
    """The shard at a log index, and what the command there did."""

    log_index: int
    records: dict[RecordId, Stored]
    digest: str
    """The sum of the records' digests, as every replica must have it."""
    outcome: WriteResult | None
    """None of a mark, and of a seal, which is one."""
    repeated: bool = False
    """The command's token was known: it did nothing, and its outcome is the first one's."""
    refused: bool = False
    """The command makes no sense, or comes while the shard is sealed."""

    def matching(self, where: Node | None) -> dict[RecordId, Stored]:
        return {one: stored for one, stored in self.records.items()
                if where is None or evaluate(where, stored.fields)}

    def faults(self, request: QueryRequest, query: int, found: Matches, whole: bool) -> str:
        """What is wrong with an answer by Euclidean distance; nothing if empty.  ``whole``: no record may be missing.

        Live, matching, sorted, unique, at the distance said; and of an exact search the nearest.
        """
        living = self.matching(request.filter)
        distances = found.distances.astype(np.float64)
        strange = [one for one in found.ids if one not in living]
        if strange:
            return f"{strange} are not there or do not match"
        if len(set(found.ids)) != len(found.ids) or len(found.ids) > request.k or len(found.ids) != len(distances):
            return f"{found.ids} for k={request.k}"
        if (np.diff(distances) < 0).any():
            return f"{distances.tolist()} are not sorted"
        true = {one: _distance(stored.vector, request.vectors[query]) for one, stored in living.items()}
        off = [one for one, distance in zip(found.ids, distances.tolist(), strict=True)
               if abs(distance - true[one]) > TOLERANCE * (1 + true[one])]
        if off:
            return f"{off} are not as far away as told"
        if request.exact and whole:
            nearest = sorted(true.values())[:request.k]
            if len(found.ids) != len(nearest) or (np.abs(distances - nearest) > TOLERANCE * (1 + distances)).any():
                return f"the nearest are at {nearest}, told were {distances.tolist()}"
        return ""


def _distance(vector: bytes, query: npt.NDArray[Any]) -> float:
    difference = np.frombuffer(vector, "<f4").astype(np.float64) - query.astype(np.float64)
    return float(np.sqrt(difference @ difference))


@dataclass(slots=True)
class Model:
    """Moments by log index, in order; the first, at 0, is empty."""

    moments: dict[int, Moment] = field(default_factory=lambda: {0: Moment(0, {}, digest_over({}), WriteResult())})
    tokens: dict[bytes, int] = field(default_factory=dict)
    """The log index at which each idempotency key took effect."""
    _fingerprints: dict[bytes, int] = field(default_factory=dict)
    _last: int = 0
    _stamp: tuple[int, int] = (0, 0)
    """The greatest job and fence of a seal or of one that was lifted."""
    _sealed: bool = False

    def apply(self, log_index: int, command: bytes) -> Moment:
        """The next entry of the log; one that was applied before is looked up."""
        known = self.moments.get(log_index)
        if known is not None:
            return known
        assert log_index > self._last, "in order"
        moment = self._next(log_index, self.moments[self._last], command)
        self.moments[log_index] = moment
        self._last = log_index
        return moment

    def _next(self, log_index: int, before: Moment, command: bytes) -> Moment:
        try:
            told, token = codec.decode(command)
        except InvalidArgument:
            return replace(before, log_index=log_index, outcome=WriteResult(), repeated=False, refused=True)
        if isinstance(told, Mark):
            return replace(before, log_index=log_index, outcome=None, repeated=False, refused=False)
        if isinstance(told, Seal | Unseal):
            return self._seal(log_index, before, told)
        if token is not None and token.key in self.tokens:
            if self._fingerprints[token.key] != token.fingerprint:
                return replace(before, log_index=log_index, outcome=WriteResult(), repeated=False, refused=True)
            first = self.moments[self.tokens[token.key]].outcome
            return replace(before, log_index=log_index, outcome=first, repeated=True, refused=False)
        if self._sealed:
            return replace(before, log_index=log_index, outcome=WriteResult(), repeated=False, refused=True)
        records = dict(before.records)
        assert not isinstance(told, Import | Adopt), "the model knows of no copiers and of no files"
        result = _done(records, told)
        if token is not None:
            self.tokens[token.key], self._fingerprints[token.key] = log_index, token.fingerprint
        return Moment(log_index, records, digest_over(records), replace(result, log_index=log_index))

    def _seal(self, log_index: int, before: Moment, told: Seal | Unseal) -> Moment:
        stamp = (told.job, told.fence)
        lifts = isinstance(told, Unseal)
        stale = stamp < self._stamp or (stamp == self._stamp and not self._sealed and stamp != (0, 0))
        refused = (self._sealed and told.job != self._stamp[0]) or (stale and not lifts)
        if not refused and not stale:
            self._stamp, self._sealed = stamp, not lifts
        outcome = WriteResult(log_index=log_index) if lifts and not refused else None
        return replace(before, log_index=log_index, outcome=outcome, repeated=False, refused=refused)

    def at(self, log_index: int) -> Moment:
        return self.moments[log_index]


def digest_over(records: dict[RecordId, Stored]) -> str:
    total = sum(int.from_bytes(digest_of(id_key(one), stored.vector, stored.metadata), "big")
                for one, stored in records.items())
    return f"{total % MODULUS:032x}"


def _done(records: dict[RecordId, Stored], command: Command) -> WriteResult:
    """Carry out a command on ``records``."""
    inserted = updated = deleted = missing = 0
    if isinstance(command, UpsertBatch):
        for one, vector, metadata in zip(command.ids, command.vectors, command.metadata, strict=True):
            updated += one in records
            inserted += one not in records
            records[one] = Stored(vector.astype("<f4").tobytes(), metadata)
    elif isinstance(command, DeleteIds):
        for one in command.ids:
            deleted += one in records
            missing += one not in records
            records.pop(one, None)
    elif isinstance(command, DeleteWhere):
        for one in [one for one, stored in records.items() if evaluate(command.filter, stored.fields)]:
            deleted += 1
            del records[one]
    else:
        updated, missing = _update(records, command)
    return WriteResult(inserted, updated, deleted, missing)


def _update(records: dict[RecordId, Stored], command: UpdateMetadata) -> tuple[int, int]:
    there = [one for one in command.ids if one in records]
    for one, patch in zip(command.ids, command.patch, strict=True):
        if one in records:
            fields: dict[str, Any] = records[one].fields if command.merge else {}
            for name, value in orjson.loads(patch).items():
                if value is None and command.merge:
                    fields.pop(name, None)
                else:
                    fields[name] = value
            records[one] = Stored(records[one].vector, orjson.dumps(fields) if command.merge else patch)
    return len(there), len(command.ids) - len(there)
