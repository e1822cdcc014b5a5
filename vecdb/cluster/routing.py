"""Which shard a record is on, and what each shard gets of a command: pure, the same in every process.

A shard is a range of a 64-bit hash (:func:`hash_of`, xxh3_64): of the record's id, or, in a collection with a
``shard_key``, of the value its metadata has under that path, so that all records of one value (a tenant) are together.
Ranges are half open and together the whole of the hashes.

**With a shard key** a value is a string, a number or a boolean, and equal as filters have it: ``1`` and ``1.0`` are one
value, ``True`` and ``1`` are two.  A record without one is refused.  A filter that says which values are meant
(:func:`pinned`) asks their shards alone.  An id does not say where its record is: what is asked by id goes to all
shards.  Ids must be distinct over the whole collection all the same, and that is the caller's to see to: two records of
one id with different values are one where both values are on one shard (the later replaces the earlier) and two where
they are not.  So an update cannot take a record to another value, and is refused where it may
(:func:`split_update`).

**A command is not split where one shard gets all of it**: it is passed on as it is.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import orjson
import xxhash

from vecdb.core.cluster import HASH_SPACE
from vecdb.core.errors import InvalidArgument, InvalidMetadata
from vecdb.core.filters.paths import split_path
from vecdb.core.filters.tree import And, Compare, In, Node, Op, Or
from vecdb.core.ids import RecordId, id_key
from vecdb.core.records import Command, DeleteIds, DeleteWhere, UpdateMetadata, UpsertBatch

MOST_PINNED: Final = 4_096
"""Values in a filter from which on all shards are asked: hashing them would take longer than it saves."""

Places = npt.NDArray[np.intp]
_DOUBLE: Final = struct.Struct("<d")
_NO_KEY: Final = "a string, a number or a boolean"


class Ranged(Protocol):
    """A shard: hashes ``lo`` to ``hi`` (exclusive) are its."""

    @property
    def lo(self) -> int: ...

    @property
    def hi(self) -> int: ...


R = TypeVar("R", bound=Ranged)


@dataclass(frozen=True, slots=True, eq=False)
class Part(Generic[R]):
    """What one shard gets: ``command``, whose rows are those of the whole command at ``places``, ascending; None: all
    of them.
    """

    shard: R
    command: Command
    places: Places | None = None


def hash_of(key: bytes) -> int:
    """Of the key of an id (:func:`~vecdb.core.ids.id_key`) or of a value (:func:`value_key`)."""
    return xxhash.xxh3_64_intdigest(key)


def hash_of_id(identity: RecordId) -> int:
    """Where the record of an id is, without a shard key."""
    return xxhash.xxh3_64_intdigest(id_key(identity))


def value_key(value: object) -> bytes | None:
    """What values that are equal have in common; None for what is no value of a shard key."""
    if isinstance(value, str):
        return b"s" + value.encode()
    if isinstance(value, bool):
        return b"b1" if value else b"b0"
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            return None
        if not value.is_integer():
            return b"f" + _DOUBLE.pack(value)
        value = int(value)
    return b"n%d" % value if isinstance(value, int) else None


class Ring(Generic[R]):
    """The shards of a collection, in the order of their ranges; they must be all of the hashes and nothing twice."""

    __slots__ = ("_starts", "shards")

    def __init__(self, shards: Iterable[R]) -> None:
        """Raises ValueError for ranges with a gap or an overlap."""
        self.shards = tuple(sorted(shards, key=lambda one: one.lo))
        edges = [one.hi for one in self.shards[:-1]]
        if not self.shards or self.shards[0].lo or self.shards[-1].hi != HASH_SPACE or \
                edges != [one.lo for one in self.shards[1:]]:
            raise ValueError(f"these ranges are not the whole once: {[(one.lo, one.hi) for one in self.shards][:8]}")
        self._starts = np.array(edges, np.uint64)

    def __len__(self) -> int:
        return len(self.shards)

    def at(self, hashed: int) -> R:
        """The shard of one hash."""
        if len(self.shards) == 1:
            return self.shards[0]
        return self.shards[int(np.searchsorted(self._starts, np.uint64(hashed), side="right"))]

    def places(self, hashes: npt.NDArray[np.uint64]) -> Places:
        """Of each hash the place of its shard in ``shards``."""
        return np.searchsorted(self._starts, hashes, side="right")

    def groups(self, hashes: npt.NDArray[np.uint64]) -> list[tuple[R, Places]]:
        """Each shard that any hash is of, with the places of its hashes, ascending."""
        if len(self.shards) == 1:
            return [(self.shards[0], np.arange(len(hashes)))] if len(hashes) else []
        at = self.places(hashes)
        order = np.argsort(at, kind="stable")
        counts = np.bincount(at, minlength=len(self.shards))
        ends = np.cumsum(counts)
        return [(shard, order[end - count:end]) for shard, end, count
                in zip(self.shards, ends.tolist(), counts.tolist(), strict=True) if count]

    def within(self, lo: int, hi: int) -> list[R]:
        """The shards that have hashes from ``lo`` to ``hi`` (exclusive)."""
        return [one for one in self.shards if one.lo < hi and lo < one.hi]


# --- ids ------------------------------------------------------------------------------------------


def id_hashes(ids: Sequence[RecordId]) -> npt.NDArray[np.uint64]:
    """Of each id, in their order."""
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(id_key(one)) for one in ids), np.uint64, len(ids))


def split_ids(ring: Ring[R], ids: Sequence[RecordId], shard_key: str | None = None) -> list[tuple[R, Places | None]]:
    """The shards to ask for these ids, each with the places of those it may have; None: of all."""
    if not ids:
        return []
    if shard_key is not None or len(ring) == 1:
        return [(shard, None) for shard in ring.shards]
    groups = ring.groups(id_hashes(ids))
    return [(groups[0][0], None)] if len(groups) == 1 else list(groups)


# --- writes ---------------------------------------------------------------------------------------


def split(ring: Ring[R], command: Command, shard_key: str | None = None) -> list[Part[R]]:
    """What each shard gets of a command, in the order of their ranges; nobody gets nothing.

    Raises ``InvalidMetadata`` where the shard key's value is missing or none, ``InvalidArgument`` for an update that
    would take records to another shard.
    """
    if isinstance(command, UpsertBatch):
        return _split_upsert(ring, command, shard_key)
    if isinstance(command, DeleteWhere):
        return [Part(shard, command) for shard in asked(ring, command.filter, shard_key)]
    if isinstance(command, DeleteIds):
        return [Part(shard, command if places is None else DeleteIds(_some(command.ids, places)), places)
                for shard, places in split_ids(ring, command.ids, shard_key)]
    return split_update(ring, command, shard_key)


def is_whole(command: Command, shard_key: str | None) -> bool:
    """Whether shards that get anything of a command get all of it, for they are not told apart by what it names."""
    return isinstance(command, DeleteWhere) or (shard_key is not None and (
        isinstance(command, DeleteIds) or (isinstance(command, UpdateMetadata) and command.merge)))


def _split_upsert(ring: Ring[R], batch: UpsertBatch, shard_key: str | None) -> list[Part[R]]:
    hashes = id_hashes(batch.ids) if shard_key is None else _metadata_hashes(batch.metadata, shard_key)
    groups = ring.groups(hashes)
    if len(groups) == 1:
        return [Part(groups[0][0], batch)]
    return [Part(shard, UpsertBatch(_some(batch.ids, places), batch.vectors[places], _some(batch.metadata, places),
                                    batch.shape), places) for shard, places in groups]


def split_update(ring: Ring[R], command: UpdateMetadata, shard_key: str | None) -> list[Part[R]]:
    """By ids; with a shard key: to all shards, or, of objects that replace, each to the shard of the value it has.

    A merge that names the key is refused, for it might take its record to another value and so to another shard; so is
    a replacement without the key.
    """
    if shard_key is None:
        return [Part(shard, command if places is None else _some_updates(command, places), places)
                for shard, places in split_ids(ring, command.ids)]
    if not command.ids:
        return []
    if not command.merge:
        groups = ring.groups(_metadata_hashes(command.patch, shard_key))
        return [Part(groups[0][0], command)] if len(groups) == 1 else \
            [Part(shard, _some_updates(command, places), places) for shard, places in groups]
    top = split_path(shard_key)[0]
    for place, patch in enumerate(command.patch):
        if top in orjson.loads(patch):
            raise InvalidArgument(f"metadata[{place}].{top}", f"holds the shard key ({shard_key!r}), which says where "
                                  "the record is: delete the record and upsert it with the other value", got=top,
                                  limit="other keys")
    return [Part(shard, command) for shard in ring.shards]


def _some(values: tuple[Any, ...], places: Places) -> tuple[Any, ...]:
    return tuple([values[place] for place in places.tolist()])


def _some_updates(command: UpdateMetadata, places: Places) -> UpdateMetadata:
    return UpdateMetadata(_some(command.ids, places), _some(command.patch, places), command.merge)


def _metadata_hashes(objects: Sequence[bytes], shard_key: str) -> npt.NDArray[np.uint64]:
    keys = split_path(shard_key)
    known: dict[bytes, int] = {}
    out = np.empty(len(objects), np.uint64)
    for place, raw in enumerate(objects):
        key = _value_of(raw, keys)
        if key is None:
            raise InvalidMetadata(f"metadata[{place}].{shard_key}", f"is the collection's shard key: every record must "
                                  f"have {_NO_KEY} there", got=raw[:80].decode("utf-8", "replace"), limit=_NO_KEY)
        hashed = known.get(key)
        out[place] = known.setdefault(key, hash_of(key)) if hashed is None else hashed
    return out


def _value_of(raw: bytes, keys: tuple[str, ...]) -> bytes | None:
    """The key of the value under a path of objects."""
    value = orjson.loads(raw)
    for key in keys:
        if type(value) is not dict or key not in value:
            return None
        value = value[key]
    return value_key(value)


def check_distinct(shard_key: str | None, found: int, wanted: int) -> None:
    """Raise ``InvalidArgument`` where fewer records came together than there were, and ids are what explains it.

    With a shard key two shards may each have a record of one id; one shard cannot have both.
    """
    if shard_key is not None and found < wanted:
        raise InvalidArgument("ids", f"{wanted} records came together as {found}: records of several values of the "
                              f"shard key {shard_key!r} share ids, and one shard cannot hold both; give them ids that "
                              "are distinct over the whole collection", got=found, limit=wanted)


def metadata_hash(raw: bytes, shard_key: str) -> int | None:
    """Where a record with this metadata is; None: it has no value of the shard key, or is none."""
    try:
        key = _value_of(raw, split_path(shard_key))
    except ValueError:
        return None
    return None if key is None else hash_of(key)


# --- filters --------------------------------------------------------------------------------------


def asked(ring: Ring[R], where: Node | None, shard_key: str | None) -> Sequence[R]:
    """The shards that may have records which match."""
    if shard_key is None or where is None or len(ring) == 1:
        return ring.shards
    keys = pinned(where, shard_key)
    if keys is None:
        return ring.shards
    hashes = np.fromiter(map(hash_of, keys), np.uint64, len(keys))
    # What no record can match is asked of one shard, which says so.
    return [shard for shard, _ in ring.groups(hashes)] or ring.shards[:1]


def pinned(where: Node, shard_key: str) -> frozenset[bytes] | None:
    """The values of the shard key (as :func:`value_key`) that records which match can have; None: any.

    Every record has one value there, not several and not null.  So a negation says nothing here that would be of use,
    and an instant equals many strings.
    """
    if isinstance(where, Compare) and where.path == shard_key and where.op is Op.EQ:
        return _keys((where.value,))
    if isinstance(where, In) and where.path == shard_key:
        return _keys(where.values)
    if isinstance(where, And):
        found = [one for one in (pinned(part, shard_key) for part in where.nodes) if one is not None]
        return frozenset.intersection(*found) if found else None
    if isinstance(where, Or) and where.nodes:
        out: set[bytes] = set()
        for part in where.nodes:
            keys = pinned(part, shard_key)
            if keys is None or len(out) + len(keys) > MOST_PINNED:
                return None
            out |= keys
        return frozenset(out)
    return None


def _keys(values: Sequence[object]) -> frozenset[bytes] | None:
    if len(values) > MOST_PINNED:
        return None
    keys = [value_key(value) for value in values]
    # Null equals what is null or absent, and no record is so; instants are none of these kinds.
    if any(key is None and value is not None for key, value in zip(keys, values, strict=True)):
        return None
    return frozenset(key for key in keys if key is not None)
