"""The control machine: what the control group agrees on, and the commands that change it.

::

    opcode u8 | version u8 | key length u8 | key | body (JSON)

==========  ==========================================================================================
1 create    ``schema``, ``replicas`` (``node/number`` each): a collection, and the first voters of its group
2 drop      ``name``
==========  ==========================================================================================

``key`` is the idempotency key: a command that took effect under one is answered with what it did then, as long as it
is among the last ``MAX_KEYS_KEPT`` that had one, and refused if the key was another command's.  Which replicas were
chosen is no part of that: a retry may come by another leader, who chooses otherwise.

:func:`apply` is total: what cannot be read or makes no sense has an error as its outcome and changes nothing but the
position.  Unknown opcodes, versions and fields are refused, so that an old node does not half understand a new one.

**Rows** of the store: ``s`` → the state's numbers; ``c`` name → a collection; ``k`` log index → a key and its outcome.
Each is JSON behind its checksum, which is bound to the key; ``s`` holds a sum over all others' checksums, so a row that
is missing or from another time is damage like a flipped bit.  The sum is the digest by which replicas are compared.
"""

import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from types import MappingProxyType
from typing import Any, Final

import orjson
import xxhash

from vecdb.core.calls import MAX_KEY_BYTES
from vecdb.core.errors import (
    CollectionExists,
    CollectionNotFound,
    DataCorrupted,
    InvalidArgument,
    LimitExceeded,
    VecdbError,
)
from vecdb.core.limits import MAX_COLLECTIONS
from vecdb.core.schema import CollectionSchema, check_name

VERSION: Final = 1
CREATE: Final = 1
DROP: Final = 2

MAX_KEYS_KEPT: Final = 1_024
"""Idempotency keys that are remembered.  Part of what every replica must do alike: change it only with a format."""
MAX_VOTERS: Final = 7
"""Replicas of a new group: more only cost latency."""
STATE_ROW: Final = b"s"
RANGES: Final = ((b"c", b"d"), (b"k", b"l"), (b"s", b"t"))
"""Where rows stand."""

_HEAD: Final = struct.Struct("<BBB")
_SUM: Final = struct.Struct("<Q")
_KEY_ROW: Final = struct.Struct(">cQ")
_MASK: Final = (1 << 64) - 1
_REPLICA: Final = re.compile(r"([^/\x00-\x1f]{1,64})/(0|[1-9][0-9]{0,9})")


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """A collection and its one shard.  ``replicas``: the group's first voters, sorted; ``created``: the command's log
    index.
    """

    schema: CollectionSchema
    group: int
    replicas: tuple[str, ...]
    created: int = 0

    @property
    def name(self) -> str:
        return self.schema.name

    @property
    def nodes(self) -> tuple[str, ...]:
        """Who holds it; the numbers of their replicas may be others by now, see the group's own configuration."""
        return tuple(node_of(replica) for replica in self.replicas)

    def to_json(self) -> dict[str, Any]:
        return {"schema": self.schema.to_json(), "group": self.group, "replicas": self.replicas,
                "created": self.created}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ShardEntry":
        """Raises ``VecdbError``, ``TypeError``, ``ValueError`` or ``KeyError`` for what is none."""
        if set(value) != {"schema", "group", "replicas", "created"}:
            raise ValueError("fields of an entry")
        return cls(CollectionSchema.from_json(value["schema"]), int(value["group"]), tuple(value["replicas"]),
                   int(value["created"]))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a command changed nothing.  ``kind``: exists, not_found or full; ``name``: of the collection."""

    kind: str
    name: str

    @classmethod
    def of(cls, error: VecdbError, name: str) -> "Refusal":
        return cls({CollectionExists: "exists", CollectionNotFound: "not_found"}.get(type(error), "full"), name)

    def error(self) -> VecdbError:
        if self.kind == "exists":
            return CollectionExists(self.name)
        return CollectionNotFound(self.name) if self.kind == "not_found" else _full()

    def to_json(self) -> dict[str, Any]:
        return {"refused": self.kind, "name": self.name}


@dataclass(frozen=True, slots=True)
class Done:
    """What the command with a key did, at ``log_index``: the entry it made or took away, or why it did nothing.

    Refusals are remembered as well: of a command that was sent twice, one may be refused and told to its caller, and
    the other come after all, late, and find things changed.
    """

    fingerprint: int
    log_index: int
    entry: ShardEntry | Refusal


@dataclass(frozen=True, slots=True)
class ControlState:
    """What is agreed on, as of ``log_index``; never changed in place.

    ``next_group``: the number the next group gets; every group there ever was is below it.  ``epoch``: how often the
    placement has changed.
    """

    collections: Mapping[str, ShardEntry] = field(default_factory=dict)
    next_group: int = 1
    epoch: int = 0
    log_index: int = 0
    term: int = 0
    keys: Mapping[bytes, Done] = field(default_factory=dict)
    """By idempotency key, oldest first."""
    digest: int = 0
    """Of all rows but ``s``; the same on every replica at the same log index."""

    def get(self, name: str) -> ShardEntry:
        """Raises ``CollectionNotFound``."""
        try:
            return self.collections[name]
        except KeyError:
            raise CollectionNotFound(name) from None

    def was_dropped(self, group: int) -> bool:
        """Whether this group was, and is no more; False for one that this state knows nothing of yet."""
        return group < self.next_group and all(entry.group != group for entry in self.collections.values())

    def loads(self) -> dict[str, int]:
        """Replicas by node."""
        counts: dict[str, int] = {}
        for entry in self.collections.values():
            for node in entry.nodes:
                counts[node] = counts.get(node, 0) + 1
        return counts


@dataclass(frozen=True, slots=True)
class Create:
    schema: CollectionSchema
    replicas: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    name: str


@dataclass(frozen=True, slots=True)
class Applied:
    """``outcome``: the :class:`ShardEntry` made or taken away, or the error.  ``puts`` and ``deletes`` are to be
    written in one batch; then ``state`` is the state.
    """

    state: ControlState
    outcome: ShardEntry | VecdbError
    puts: tuple[tuple[bytes, bytes], ...]
    deletes: tuple[bytes, ...]


def node_of(replica: str) -> str:
    return replica.rpartition("/")[0]


# --- commands -------------------------------------------------------------------------------------


def create(schema: CollectionSchema, replicas: Iterable[str], key: bytes = b"") -> bytes:
    """The command that makes a collection."""
    return _encode(CREATE, key, {"schema": schema.to_json(), "replicas": list(replicas)})


def drop(name: str, key: bytes = b"") -> bytes:
    """The command that takes a collection away, with all its records."""
    return _encode(DROP, key, {"name": name})


def _encode(opcode: int, key: bytes, body: dict[str, Any]) -> bytes:
    if len(key) > MAX_KEY_BYTES:
        raise LimitExceeded("idempotency_key", f"{len(key)} bytes, more than {MAX_KEY_BYTES}", got=len(key),
                            limit=MAX_KEY_BYTES)
    return _HEAD.pack(opcode, VERSION, len(key)) + key + orjson.dumps(body, option=orjson.OPT_SORT_KEYS)


def decode(command: bytes) -> tuple[Create | Drop, bytes]:
    """The command and its key (empty: none); ``InvalidArgument`` for bytes that are none."""
    if len(command) < _HEAD.size:
        raise _refused("is cut short", got=len(command), limit="a command")
    opcode, version, length = _HEAD.unpack_from(command)
    if version != VERSION:
        raise _refused(f"has version {version}, and this one reads {VERSION}", got=version, limit=VERSION)
    key, rest = command[_HEAD.size:_HEAD.size + length], command[_HEAD.size + length:]
    if length > MAX_KEY_BYTES or len(key) != length:
        raise _refused("has a key that is cut short or too long", got=length, limit=MAX_KEY_BYTES)
    try:
        return _body(opcode, orjson.loads(rest)), key
    except InvalidArgument:
        raise
    except (VecdbError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _refused(f"cannot be read: {type(error).__name__}", got=opcode, limit="a command") from error


def _body(opcode: int, body: dict[str, Any]) -> Create | Drop:
    if opcode == CREATE and set(body) == {"schema", "replicas"}:
        return Create(CollectionSchema.from_json(body["schema"]), check_replicas(body["replicas"]))
    if opcode == DROP and set(body) == {"name"}:
        return Drop(check_name(body["name"]))
    raise _refused("has an opcode or fields that this version does not know", got=opcode, limit=[CREATE, DROP])


def check_replicas(replicas: Iterable[object]) -> tuple[str, ...]:
    """Sorted; ``InvalidArgument`` unless they are 1 to 7 of ``node/number``, each of another node."""
    checked: list[str] = []
    for one in replicas:
        match = _REPLICA.fullmatch(one) if isinstance(one, str) else None
        if match is None or int(match[2]) >= 1 << 32 or len(match[1].encode()) > 64:
            raise InvalidArgument("replicas", "must be named node/number", got=str(one)[:80], limit="n2/7")
        checked.append(match[0])
    if not 1 <= len(checked) <= MAX_VOTERS or len(set(map(node_of, checked))) != len(checked):
        raise InvalidArgument("replicas", f"must be 1 to {MAX_VOTERS}, each of another node", got=checked[:16],
                              limit=MAX_VOTERS)
    return tuple(sorted(checked))


def _refused(message: str, *, got: Any, limit: Any) -> InvalidArgument:
    return InvalidArgument("command", message, got=got, limit=limit)


def _fingerprint(command: Create | Drop) -> int:
    content = command.schema.to_json() if isinstance(command, Create) else command.name
    return xxhash.xxh3_64_intdigest(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))


# --- applying -------------------------------------------------------------------------------------


def apply(state: ControlState, log_index: int, term: int, command: bytes) -> Applied:
    """What a committed command does.  ``log_index`` is above the state's."""
    here = replace(state, log_index=log_index, term=term)
    try:
        decoded, key = decode(command)
        known = state.keys.get(key)
        if known is not None:
            if known.fingerprint != _fingerprint(decoded):
                raise InvalidArgument("idempotency_key", f"was used for another command, applied at log index "
                                      f"{known.log_index}", got=key.hex(), limit="a key of its own for every command")
            return _applied(here, known.entry.error() if isinstance(known.entry, Refusal) else known.entry)
    except VecdbError as error:
        return _applied(here, error)
    try:
        return _create(here, decoded, key) if isinstance(decoded, Create) else _drop(here, decoded, key)
    except VecdbError as error:
        return _applied(here, error, key, decoded)


def _create(state: ControlState, command: Create, key: bytes) -> Applied:
    name = command.schema.name
    if name in state.collections:
        raise CollectionExists(name)
    if len(state.collections) >= MAX_COLLECTIONS:
        raise _full()
    entry = ShardEntry(command.schema, state.next_group, command.replicas, state.log_index)
    after = replace(state, collections=MappingProxyType({**state.collections, name: entry}),
                    next_group=state.next_group + 1, epoch=state.epoch + 1)
    return _applied(after, entry, key, command, put=_collection_row(entry))


def _full() -> LimitExceeded:
    return LimitExceeded("name", f"there are {MAX_COLLECTIONS} collections already", got=MAX_COLLECTIONS,
                         limit=MAX_COLLECTIONS)


def _drop(state: ControlState, command: Drop, key: bytes) -> Applied:
    entry = state.get(command.name)
    left = MappingProxyType({name: one for name, one in state.collections.items() if name != command.name})
    after = replace(state, collections=left, epoch=state.epoch + 1)
    return _applied(after, entry, key, command, gone=_collection_row(entry))


def _applied(state: ControlState, outcome: ShardEntry | VecdbError, key: bytes = b"",
             command: Create | Drop | None = None, *, put: tuple[bytes, bytes] | None = None,
             gone: tuple[bytes, bytes] | None = None) -> Applied:
    puts = [] if put is None else [put]
    lost = [] if gone is None else [gone]
    if key and command is not None:
        name = command.schema.name if isinstance(command, Create) else command.name
        kept = outcome if isinstance(outcome, ShardEntry) else Refusal.of(outcome, name)
        done = Done(_fingerprint(command), state.log_index, kept)
        forgotten = list(islice(state.keys.items(), max(0, len(state.keys) + 1 - MAX_KEYS_KEPT)))
        keys = {**state.keys, key: done}
        for one, _ in forgotten:
            del keys[one]
        state = replace(state, keys=MappingProxyType(keys))
        puts.append(_done_row(key, done))
        lost += [_done_row(*one) for one in forgotten]
    digest = state.digest + sum(_sum_of(row) for row in puts) - sum(_sum_of(row) for row in lost)
    state = replace(state, digest=digest & _MASK)
    return Applied(state, outcome, (*puts, _state_row(state)), tuple(row for row, _ in lost))


# --- rows -----------------------------------------------------------------------------------------


def rows_of(state: ControlState) -> list[tuple[bytes, bytes]]:
    """All rows of a state, in the order of their keys."""
    return sorted([*map(_collection_row, state.collections.values()),
                   *(_done_row(key, done) for key, done in state.keys.items()), _state_row(state)])


def from_rows(rows: Iterable[tuple[bytes, bytes]]) -> ControlState:
    """The state that was written as these rows, in the order of their keys; none at all are the empty state.

    Raises ``DataCorrupted`` unless they are exactly what was written.
    """
    numbers: list[int] | None = None
    collections: dict[str, ShardEntry] = {}
    keys: dict[bytes, Done] = {}
    digest = 0
    for key, value in rows:
        body = _body_of(key, value)
        try:
            if key == STATE_ROW:
                numbers = _numbers(orjson.loads(body))
                continue
            digest += _sum_of((key, value))
            if key[:1] == b"c":
                entry = ShardEntry.from_json(orjson.loads(body))
                collections[key[1:].decode()] = entry
            else:
                name, fingerprint, done = orjson.loads(body)
                kept = Refusal(done["refused"], done["name"]) if "refused" in done else ShardEntry.from_json(done)
                keys[bytes.fromhex(name)] = Done(fingerprint, _KEY_ROW.unpack(key)[1], kept)
        except (VecdbError, ValueError, TypeError, KeyError, struct.error) as error:
            raise _damaged(f"the row {key!r} cannot be understood") from error
    if numbers is None:
        if collections or keys:
            raise _damaged("there are rows, and not the one that tells of them")
        return ControlState()
    next_group, epoch, log_index, term, count, remembered, summed = numbers
    if (len(collections), len(keys), digest & _MASK) != (count, remembered, summed):
        raise _damaged("rows are missing, or are not of one time")
    return ControlState(MappingProxyType(collections), next_group, epoch, log_index, term, MappingProxyType(keys),
                        summed)


def _numbers(value: object) -> list[int]:
    if not isinstance(value, list) or len(value) != 7 or not all(isinstance(one, int) for one in value):
        raise ValueError("the numbers of a state")
    return value


def _state_row(state: ControlState) -> tuple[bytes, bytes]:
    return _row(STATE_ROW, [state.next_group, state.epoch, state.log_index, state.term, len(state.collections),
                            len(state.keys), state.digest])


def _collection_row(entry: ShardEntry) -> tuple[bytes, bytes]:
    return _row(b"c" + entry.name.encode(), entry.to_json())


def _done_row(key: bytes, done: Done) -> tuple[bytes, bytes]:
    return _row(_KEY_ROW.pack(b"k", done.log_index), [key.hex(), done.fingerprint, done.entry.to_json()])


def _row(key: bytes, value: object) -> tuple[bytes, bytes]:
    body = bytes([VERSION]) + orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    return key, _SUM.pack(_checksum(key, body)) + body


def _checksum(key: bytes, body: bytes) -> int:
    return xxhash.xxh3_64_intdigest(body, xxhash.xxh3_64_intdigest(key))


def _sum_of(row: tuple[bytes, bytes]) -> int:
    return int(_SUM.unpack_from(row[1])[0])


def _body_of(key: bytes, value: bytes) -> bytes:
    body = value[_SUM.size:]
    if len(value) <= _SUM.size or _sum_of((key, value)) != _checksum(key, body):
        raise _damaged(f"the row {key!r} does not match its checksum")
    if body[0] != VERSION:
        raise _damaged(f"the row {key!r} is of version {body[0]}")
    return body[1:]


def _damaged(what: str) -> DataCorrupted:
    return DataCorrupted(f"the control state is damaged: {what}", path="control")
