"""Rows of the control state in a store.

``a`` id → an API key; ``c`` name → a collection; ``d`` name → one that is being loaded; ``g`` group → a shard; ``j`` id
→ a job; ``k`` log index → an idempotency key and its outcome; ``n`` name → a node; ``p`` name → a setting; ``t`` id → a
token; ``s`` → the state's numbers.  Each is JSON behind its checksum, which is bound to the key; ``s`` holds a sum over
all others' checksums, so a row that is missing or from another time is damage like a flipped bit.  The sum is the
digest by which replicas are compared.

**Version 1**, of the release that knew only collections of one shard, had both in ``c``, and a list in ``s``.  It is
read; what is read so has the digest of the rows that it would be written as now, and whoever opens a store of it writes
them all (:func:`read_rows` says so).
"""

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

import orjson
import xxhash

from vecdb.cluster.control.entries import (
    ApiKeyEntry,
    CollectionEntry,
    JobEntry,
    NodeEntry,
    ShardEntry,
    TokenEntry,
)
from vecdb.cluster.control.state import ControlState, Done, Outcome, Refusal, full
from vecdb.core.errors import CollectionExists, CollectionNotFound, DataCorrupted, VecdbError
from vecdb.core.schema import CollectionSchema

ROW_VERSION: Final = 2
STATE_ROW: Final = b"s"
RANGES: Final = ((b"a", b"z"),)
"""Where rows stand."""

_SUM: Final = struct.Struct("<Q")
_NUMBER_ROW: Final = struct.Struct(">cQ")
_MASK: Final = (1 << 64) - 1
_NUMBERS: Final = ("next_group", "next_job", "epoch", "log_index", "term", "digest")

Row = tuple[bytes, bytes]


def rows_of(state: ControlState) -> list[Row]:
    """All rows of a state, in the order of their keys."""
    return sorted([*(row_of(kind, key, entry) for kind in KINDS for key, entry in getattr(state, kind).items()),
                   state_row(state)])


def from_rows(rows: Iterable[Row]) -> ControlState:
    """The state that was written as these rows, in the order of their keys; none at all are the empty state.

    Raises ``DataCorrupted`` unless they are exactly what was written.
    """
    return read_rows(rows)[0]


def read_rows(rows: Iterable[Row]) -> tuple[ControlState, bool]:
    """As :func:`from_rows`, and whether they are as they would be written now."""
    reader = _Reader()
    for key, value in rows:
        try:
            reader.row(key, value)
        except (VecdbError, ValueError, TypeError, KeyError, struct.error) as error:
            if isinstance(error, DataCorrupted):
                raise
            raise _damaged(f"the row {key!r} cannot be understood") from error
    return reader.state(), reader.version == ROW_VERSION


class _Reader:
    """Rows on their way to a state; all of one version."""

    def __init__(self) -> None:
        self.version = ROW_VERSION
        self._numbers: dict[str, Any] | None = None
        self._counts: dict[str, int] = {}
        self._maps: dict[str, dict[Any, Any]] = {kind: {} for kind in KINDS}
        self._digest = 0
        self._any = False

    def row(self, key: bytes, value: bytes) -> None:
        version, body = _body_of(key, value)
        if version not in (1, ROW_VERSION) or (self._any and version != self.version):
            raise _damaged(f"the row {key!r} is of version {version}")
        self.version, self._any = version, True
        if key == STATE_ROW:
            self._take_numbers(orjson.loads(body))
            return
        self._digest += sum_of((key, value))
        kind, found, maps = key[:1], orjson.loads(body), self._maps
        if kind == b"c" and version == 1:
            maps["collections"][key[1:].decode()], shard = _old_entry(found)
            maps["shards"][shard.group] = shard
        elif kind == b"g":
            name, group = found["collection"], _NUMBER_ROW.unpack(key)[1]
            loaded = maps["loading"].get(name)
            entry = loaded if loaded is not None and group in loaded.groups else maps["collections"][name]
            shard = ShardEntry.from_json(found, entry.schema)
            maps["shards"][_NUMBER_ROW.unpack(key)[1]] = shard
        elif kind == b"k":
            name, fingerprint, done = found
            outcome = _old_outcome(done) if version == 1 else _outcome(done)
            maps["keys"][bytes.fromhex(name)] = Done(fingerprint, _NUMBER_ROW.unpack(key)[1], outcome)
        elif kind == b"j":
            maps["jobs"][_NUMBER_ROW.unpack(key)[1]] = JobEntry.from_json(found)
        elif kind == b"p":
            maps["settings"][key[1:].decode()] = found
        elif kind in _NAMED:
            field, read = _NAMED[kind]
            maps[field][key[1:].decode()] = read(found)
        else:
            raise _damaged(f"the row {key!r} is of no kind that is known")

    def _take_numbers(self, found: Any) -> None:
        if self.version == 1:
            next_group, epoch, log_index, term, count, remembered, digest = found
            self._counts = {"collections": count, "shards": count, "keys": remembered}
            found = {"next_group": next_group, "next_job": 1, "epoch": epoch, "log_index": log_index, "term": term,
                     "digest": digest, "counts": self._counts}
        numbers, counts = {name: found[name] for name in _NUMBERS}, found["counts"]
        if not all(type(one) is int for one in (*numbers.values(), *counts.values())):
            raise ValueError("the numbers of a state")
        self._numbers, self._counts = numbers, counts

    def state(self) -> ControlState:
        if self._numbers is None:
            if self._any:
                raise _damaged("there are rows, and not the one that tells of them")
            return ControlState()
        maps: dict[str, Any] = {kind: MappingProxyType(entries) for kind, entries in self._maps.items()}
        found = replace(ControlState(), **maps, **self._numbers)
        if counts_of(found) != {**counts_of(ControlState()), **self._counts} \
                or self._digest & _MASK != found.digest:
            raise _damaged("rows are missing, or are not of one time")
        _check_whole(found)
        if self.version == ROW_VERSION:
            return found
        return _with_digest(found)


def _with_digest(state: ControlState) -> ControlState:
    """With the digest of the rows it would be written as."""
    return replace(state, digest=sum(sum_of(row) for row in rows_of(state) if row[0] != STATE_ROW) & _MASK)


def _check_whole(state: ControlState) -> None:
    """Collections and shards name each other."""
    named = {group: name for entries in (state.collections, state.loading) for name, entry in entries.items()
             for group in entry.groups}
    if named != {group: shard.name for group, shard in state.shards.items()}:
        raise _damaged("collections and shards do not name each other")


def _old_entry(found: Mapping[str, Any]) -> tuple[CollectionEntry, ShardEntry]:
    """Of version 1."""
    if set(found) != {"schema", "group", "replicas", "created"}:
        raise ValueError("fields of an entry")
    schema, group = CollectionSchema.from_json(found["schema"]), int(found["group"])
    replicas, created = tuple(found["replicas"]), int(found["created"])
    return (CollectionEntry(schema, (group,), len(replicas), created=created),
            ShardEntry.only(schema, group, replicas, created))


def _old_outcome(found: Mapping[str, Any]) -> CollectionEntry | Refusal:
    if "refused" not in found:
        return _old_entry(found)[0]
    name = found["name"]
    return Refusal.of({"exists": CollectionExists(name), "not_found": CollectionNotFound(name)}.get(found["refused"],
                                                                                                  full()))


def _outcome(found: Mapping[str, Any]) -> Outcome | Refusal:
    (kind, value), = found.items()
    if kind == "refused":
        return Refusal(*value)
    return tuple(value) if kind == "groups" else _OUTCOMES[kind].from_json(value)


def _outcome_json(outcome: Outcome | Refusal) -> dict[str, Any]:
    if isinstance(outcome, Refusal):
        return {"refused": [outcome.kind, outcome.message, outcome.fields]}
    if isinstance(outcome, tuple):
        return {"groups": outcome}
    return {type(outcome).__name__: outcome.to_json()}


_OUTCOMES: Final[dict[str, type[CollectionEntry | NodeEntry | TokenEntry | ApiKeyEntry | JobEntry]]] = {
    one.__name__: one for one in (CollectionEntry, NodeEntry, TokenEntry, ApiKeyEntry, JobEntry)}


def counts_of(state: ControlState) -> dict[str, int]:
    """How many rows there are of what."""
    return {kind: len(getattr(state, kind)) for kind in KINDS}


# --- single rows ----------------------------------------------------------------------------------

_NAMED: Final[dict[bytes, tuple[str, Callable[[Any], Any]]]] = {
    b"a": ("api_keys", ApiKeyEntry.from_json), b"c": ("collections", CollectionEntry.from_json),
    b"d": ("loading", CollectionEntry.from_json),
    b"n": ("nodes", NodeEntry.from_json), b"t": ("tokens", TokenEntry.from_json)}
"""Rows whose key is a name."""
_LETTERS: Final = {"api_keys": b"a", "collections": b"c", "loading": b"d", "nodes": b"n", "settings": b"p",
                   "tokens": b"t"}
_NUMBERED: Final = {"shards": b"g", "jobs": b"j"}
KINDS: Final = (*_LETTERS, *_NUMBERED, "keys")
"""The mappings of a state."""


def row_of(kind: str, key: Any, entry: Any) -> Row:
    """Of one entry of a mapping of the state."""
    if kind == "keys":
        return _row(_NUMBER_ROW.pack(b"k", entry.log_index), [key.hex(), entry.fingerprint, _outcome_json(entry.entry)])
    if kind in _NUMBERED:
        return _row(_NUMBER_ROW.pack(_NUMBERED[kind], key), entry.to_json())
    return _row(_LETTERS[kind] + key.encode(), entry if kind == "settings" else entry.to_json())


def state_row(state: ControlState) -> Row:
    numbers: dict[str, Any] = {name: getattr(state, name) for name in _NUMBERS}
    return _row(STATE_ROW, {**numbers, "counts": counts_of(state)})


def sum_of(row: Row) -> int:
    """What a row adds to the digest."""
    return int(_SUM.unpack_from(row[1])[0])


def _row(key: bytes, value: object) -> Row:
    body = bytes([ROW_VERSION]) + orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    return key, _SUM.pack(_checksum(key, body)) + body


def _checksum(key: bytes, body: bytes) -> int:
    return xxhash.xxh3_64_intdigest(body, xxhash.xxh3_64_intdigest(key))


def _body_of(key: bytes, value: bytes) -> tuple[int, bytes]:
    body = value[_SUM.size:]
    if len(value) <= _SUM.size or sum_of((key, value)) != _checksum(key, body):
        raise _damaged(f"the row {key!r} does not match its checksum")
    return body[0], body[1:]


def _damaged(what: str) -> DataCorrupted:
    return DataCorrupted(f"the control state is damaged: {what}", path="control")
