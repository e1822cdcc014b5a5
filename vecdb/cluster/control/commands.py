"""The commands of the control group, to bytes and back.  See the package for what each does.

A command is a frozen dataclass whose ``body`` is the JSON that :data:`COMMANDS` reads back.  What is only of the moment
it was made in (clock readings) is in :data:`_PASSING`, and no part of what two commands under one key have in common.
"""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import xxhash

from vecdb.cluster.control.checks import (
    ShardPlan,
    check_capacity,
    check_factor,
    check_groups,
    check_id,
    check_job_json,
    check_node,
    check_nodes,
    check_number,
    check_replicas,
    check_seconds,
    check_setting,
    check_shard_key,
    check_shards,
    check_text,
)
from vecdb.cluster.control.entries import ApiKeyEntry, NodeEntry, TokenEntry
from vecdb.core.access import check_grants
from vecdb.core.calls import MAX_KEY_BYTES
from vecdb.core.cluster import HASH_SPACE, JobState, NodeState
from vecdb.core.errors import InvalidArgument, LimitExceeded, VecdbError
from vecdb.core.limits import MAX_NAME_BYTES
from vecdb.core.schema import CollectionSchema, check_name

VERSION: Final = 2
"""The latest version of commands that this code reads and writes."""

_HEAD: Final = struct.Struct("<BBB")
_PASSING: Final = frozenset({"at_s"})
_HEX: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Create:
    schema: CollectionSchema
    shards: tuple[ShardPlan, ...]
    replication_factor: int
    shard_key: str | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    name: str


@dataclass(frozen=True, slots=True)
class NodePut:
    entry: NodeEntry


@dataclass(frozen=True, slots=True)
class NodeStatePut:
    name: str
    state: NodeState
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class NodeRemove:
    name: str
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenPut:
    entry: TokenEntry


@dataclass(frozen=True, slots=True)
class TokenRevoke:
    id: str


@dataclass(frozen=True, slots=True)
class ApiKeyPut:
    entry: ApiKeyEntry
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ApiKeyRevoke:
    id: str
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class JobPut:
    kind: str
    target: str
    args: Mapping[str, Any] = field(default_factory=dict)
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class JobUpdate:
    id: int
    state: JobState
    phase: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    error: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class JobCancel:
    id: int
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Place:
    group: int
    desired: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Replication:
    name: str
    factor: int


@dataclass(frozen=True, slots=True)
class ShardsAdd:
    job: int
    name: str
    shards: tuple[ShardPlan, ...]


@dataclass(frozen=True, slots=True)
class ShardsSwitch:
    job: int
    name: str
    retire: tuple[int, ...]
    activate: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ShardsForget:
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CollectionLoad:
    job: int
    schema: CollectionSchema
    shards: tuple[ShardPlan, ...]
    replication_factor: int
    shard_key: str | None = None


@dataclass(frozen=True, slots=True)
class CollectionReady:
    job: int
    name: str


@dataclass(frozen=True, slots=True)
class CollectionAbandon:
    job: int
    name: str


@dataclass(frozen=True, slots=True)
class SettingPut:
    name: str
    value: Any


Command = (Create | Drop | NodePut | NodeStatePut | NodeRemove | TokenPut | TokenRevoke | ApiKeyPut | ApiKeyRevoke
           | JobPut | JobUpdate | JobCancel | Place | Replication | ShardsAdd | ShardsSwitch | ShardsForget
           | SettingPut | CollectionLoad | CollectionReady | CollectionAbandon)


# --- from JSON ------------------------------------------------------------------------------------


def _schema(value: dict[str, Any]) -> CollectionSchema:
    schema = CollectionSchema.from_json(value)
    check_name(schema.name)  # what is stored may have a label's
    return schema


def _plans(value: Iterable[Any], *, whole: bool) -> tuple[ShardPlan, ...]:
    return check_shards(((lo, check_number("shards", last, most=HASH_SPACE - 1) + 1, of) for lo, last, of in value),
                        whole=whole)


def _create_one(schema: Any, replicas: Any) -> Create:
    checked = check_replicas(replicas)
    return Create(_schema(schema), ((0, HASH_SPACE, checked),), len(checked))


def _create(schema: Any, shards: Any, replication_factor: Any, shard_key: Any) -> Create:
    return Create(_schema(schema), _plans(shards, whole=True), check_factor(replication_factor),
                  check_shard_key(shard_key))


def _load(job: Any, schema: Any, shards: Any, replication_factor: Any, shard_key: Any) -> CollectionLoad:
    return CollectionLoad(check_number("job", job, least=1), _schema(schema), _plans(shards, whole=True),
                          check_factor(replication_factor), check_shard_key(shard_key))


def _node_put(entry: Any) -> NodePut:
    found = NodeEntry.from_json(entry)
    check_node(found.name)
    for argument, text in (("address", found.address), ("client_address", found.client_address),
                           ("http_address", found.http_address)):
        check_text(argument, text, 300)
    check_text("zone", found.zone, 64)
    check_text("version", found.version, 64)
    check_capacity(found.capacity)
    check_number("commands", found.commands, least=1, most=255)
    check_seconds(found.joined_s)
    check_seconds(found.updated_s)
    return NodePut(found)


def _token_put(entry: Any) -> TokenPut:
    found = TokenEntry.from_json(entry)
    check_id("token", found.id)
    _check_hash(found.salt, found.digest)
    check_seconds(found.expires_s)
    check_seconds(found.created_s)
    return TokenPut(found)


def _api_key_put(entry: Any, at_s: Any) -> ApiKeyPut:
    found = ApiKeyEntry.from_json(entry)
    check_id("key", found.id)
    check_text("name", found.name, MAX_NAME_BYTES, empty=False)
    check_grants(found.grants)
    if not 1 <= len(found.secrets) <= 2:
        raise InvalidArgument("secrets", "are one, or two for a while", got=len(found.secrets), limit="1..2")
    for salt, digest, until_s in found.secrets:
        _check_hash(salt, digest)
        check_seconds(until_s)
    for seconds in (found.created_s, found.expires_s, found.revoked_s):
        check_seconds(seconds)
    return ApiKeyPut(found, check_seconds(at_s))


def _check_hash(salt: Any, digest: Any) -> None:
    for one in (salt, digest):
        if not check_text("digest", one, 128) or set(one) - _HEX or len(one) % 2:
            raise InvalidArgument("digest", "must be bytes in hex", got=len(one), limit="hex")


def _job_update(id: Any, state: Any, phase: Any, done: Any, total: Any, unit: Any, error: Any, data: Any, at_s: Any
                ) -> JobUpdate:
    return JobUpdate(check_number("id", id, least=1), JobState(state), check_text("phase", phase, 64),
                     check_number("done", done), check_number("total", total), check_text("unit", unit, 64),
                     check_text("error", error), check_job_json("data", data), check_seconds(at_s))


def _job_put(kind: Any, target: Any, args: Any, at_s: Any) -> JobPut:
    return JobPut(check_id("kind", kind), check_text("target", target), check_job_json("args", args),
                  check_seconds(at_s))


_Reader = Callable[..., Command]
_TABLE: Final[list[tuple[tuple[int, int], str, _Reader]]] = [
    ((1, 1), "schema replicas", _create_one),
    ((1, 2), "schema shards replication_factor shard_key", _create),
    ((2, 1), "name", lambda name: Drop(check_name(name))),
    ((3, 2), "entry", _node_put),
    ((4, 2), "name state at_s", lambda name, state, at_s: NodeStatePut(check_node(name), NodeState(state),
                                                                      check_seconds(at_s))),
    ((5, 2), "name at_s", lambda name, at_s: NodeRemove(check_node(name), check_seconds(at_s))),
    ((6, 2), "entry", _token_put),
    ((7, 2), "id", lambda id: TokenRevoke(check_id("token", id))),
    ((8, 2), "entry at_s", _api_key_put),
    ((9, 2), "id at_s", lambda id, at_s: ApiKeyRevoke(check_id("key", id), check_seconds(at_s))),
    ((10, 2), "kind target args at_s", _job_put),
    ((11, 2), "id state phase done total unit error data at_s", _job_update),
    ((12, 2), "id at_s", lambda id, at_s: JobCancel(check_number("id", id, least=1), check_seconds(at_s))),
    ((13, 2), "group desired", lambda group, desired: Place(check_number("group", group, least=1),
                                                           check_nodes(desired))),
    ((14, 2), "name factor", lambda name, factor: Replication(check_name(name), check_factor(factor))),
    ((15, 2), "job name shards", lambda job, name, shards: ShardsAdd(
        check_number("job", job, least=1), check_name(name), _plans(shards, whole=False))),
    ((16, 2), "job name retire activate", lambda job, name, retire, activate: ShardsSwitch(
        check_number("job", job, least=1), check_name(name), check_groups(retire), check_groups(activate))),
    ((17, 2), "groups", lambda groups: ShardsForget(check_groups(groups))),
    ((18, 2), "name value", lambda name, value: SettingPut(*check_setting(name, value))),
    ((19, 2), "job schema shards replication_factor shard_key", _load),
    ((20, 2), "job name", lambda job, name: CollectionReady(check_number("job", job, least=1), check_name(name))),
    ((21, 2), "job name", lambda job, name: CollectionAbandon(check_number("job", job, least=1), check_name(name))),
]
COMMANDS: Final = {key: (frozenset(fields.split()), read) for key, fields, read in _TABLE}
"""By opcode and version: fields, and who reads them."""


def decode(command: bytes) -> tuple[Command, bytes]:
    """The command and its key (empty: none); ``InvalidArgument`` for bytes that are none."""
    return decoded(command)[:2]


def decoded(command: bytes, reads: int = VERSION) -> tuple[Command, bytes, int]:
    """And the fingerprint of what two commands under one key must have in common."""
    if len(command) < _HEAD.size:
        raise _refused("is cut short", got=len(command), limit="a command")
    opcode, version, length = _HEAD.unpack_from(command)
    if not 1 <= version <= reads:
        raise _refused(f"has version {version}, and this one reads {reads}", got=version, limit=reads)
    key, rest = command[_HEAD.size:_HEAD.size + length], command[_HEAD.size + length:]
    if length > MAX_KEY_BYTES or len(key) != length:
        raise _refused("has a key that is cut short or too long", got=length, limit=MAX_KEY_BYTES)
    known = COMMANDS.get((opcode, version))
    try:
        body = orjson.loads(rest)
        if known is None or not isinstance(body, dict) or set(body) != known[0]:
            raise _refused("has an opcode or fields that this version does not know", got=opcode,
                           limit=sorted({one for one, _ in COMMANDS}))
        found = known[1](**body)
        return found, key, _fingerprint(opcode, found, body) if key else 0
    except InvalidArgument:
        raise
    except (VecdbError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _refused(f"cannot be read: {type(error).__name__}", got=opcode, limit="a command") from error


def _fingerprint(opcode: int, command: Command, body: Mapping[str, Any]) -> int:
    """Another leader may choose other replicas for a collection, and other shards: what was asked is the same."""
    content: Any = [opcode, {name: value for name, value in body.items() if name not in _PASSING}]
    if isinstance(command, Create):
        schema = command.schema.to_json()
        content = schema if command.shard_key is None else [schema, command.shard_key]
    elif isinstance(command, Drop):
        content = command.name
    return xxhash.xxh3_64_intdigest(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))


def _refused(message: str, *, got: Any, limit: Any) -> InvalidArgument:
    return InvalidArgument("command", message, got=got, limit=limit)


# --- to bytes -------------------------------------------------------------------------------------


def _encode(opcode: int, version: int, key: bytes, **body: Any) -> bytes:
    if len(key) > MAX_KEY_BYTES:
        raise LimitExceeded("idempotency_key", f"{len(key)} bytes, more than {MAX_KEY_BYTES}", got=len(key),
                            limit=MAX_KEY_BYTES)
    return _HEAD.pack(opcode, version, len(key)) + key + orjson.dumps(body, option=orjson.OPT_SORT_KEYS)


def version_of(command: bytes) -> int:
    """The version of commands that a node must read to read this one, which was made here."""
    return command[1]


NewShards = Sequence[tuple[int, int, Iterable[str]]]
"""``(lo, hi, replicas)`` of each, in order and without gaps."""


def _bodies(shards: NewShards) -> list[tuple[int, int, list[str]]]:
    return [(lo, hi - 1, list(replicas)) for lo, hi, replicas in shards]


def create(schema: CollectionSchema, replicas: Iterable[str], key: bytes = b"") -> bytes:
    """Make a collection of one shard with as many replicas as it should have.

    Nodes of the release that knew no other collections read it too.
    """
    return _encode(1, 1, key, schema=schema.to_json(), replicas=list(replicas))


def create_shards(schema: CollectionSchema, shards: NewShards, replication_factor: int,
                  shard_key: str | None = None, key: bytes = b"") -> bytes:
    """Make a collection."""
    bodies = _bodies(shards)
    if shard_key is None and [(lo, last, len(of)) for lo, last, of in bodies] == [
            (0, HASH_SPACE - 1, replication_factor)]:
        return create(schema, bodies[0][2], key)
    return _encode(1, 2, key, schema=schema.to_json(), shards=bodies, replication_factor=replication_factor,
                   shard_key=shard_key)


def drop(name: str, key: bytes = b"") -> bytes:
    """Take a collection away, with all its records."""
    return _encode(2, 1, key, name=name)


def node_put(entry: NodeEntry, key: bytes = b"") -> bytes:
    """A node as it announces itself; see :func:`vecdb.cluster.control.apply` for what of its state counts."""
    return _encode(3, 2, key, entry=entry.to_json())


def node_state(name: str, state: NodeState, *, at_s: float = 0.0, key: bytes = b"") -> bytes:
    """Active, draining or drained."""
    return _encode(4, 2, key, name=name, state=state.value, at_s=at_s)


def node_remove(name: str, *, at_s: float = 0.0, key: bytes = b"") -> bytes:
    """It has left, and is refused until it joins anew.  Nothing may be placed on it."""
    return _encode(5, 2, key, name=name, at_s=at_s)


def token_put(entry: TokenEntry, key: bytes = b"") -> bytes:
    """A token to join with."""
    return _encode(6, 2, key, entry=entry.to_json())


def token_revoke(id: str, key: bytes = b"") -> bytes:
    """It is gone; no error where there is none."""
    return _encode(7, 2, key, id=id)


def api_key_put(entry: ApiKeyEntry, *, at_s: float = 0.0, key: bytes = b"") -> bytes:
    """A new API key, or other secrets or grants of one; one that is revoked stays so."""
    return _encode(8, 2, key, entry=entry.to_json(), at_s=at_s)


def api_key_revoke(id: str, *, at_s: float, key: bytes = b"") -> bytes:
    """For good; ``KeyNotFound``.  ``at_s``: now, above 0."""
    return _encode(9, 2, key, id=id, at_s=at_s)


def job_put(kind: str, target: str, args: Mapping[str, Any], *, at_s: float = 0.0, key: bytes = b"") -> bytes:
    """A job that waits; its entry, with its id, is the outcome."""
    return _encode(10, 2, key, kind=kind, target=target, args=dict(args), at_s=at_s)


def job_update(id: int, *, state: JobState, phase: str = "", done: int = 0, total: int = 0, unit: str = "",
               error: str = "", data: Mapping[str, Any] | None = None, at_s: float = 0.0, key: bytes = b"") -> bytes:
    """How far a job is.  One that is being cancelled goes on being so unless it ends; one that ended stays as it is."""
    return _encode(11, 2, key, id=id, state=state.value, phase=phase, done=done, total=total, unit=unit,
                   error=error[:1_000], data=dict(data or {}), at_s=at_s)


def job_cancel(id: int, *, at_s: float = 0.0, key: bytes = b"") -> bytes:
    """Ask a job to end; nothing where it has."""
    return _encode(12, 2, key, id=id, at_s=at_s)


def place(group: int, desired: Iterable[str], key: bytes = b"") -> bytes:
    """Which nodes a shard should be on."""
    return _encode(13, 2, key, group=group, desired=list(desired))


def replication(name: str, factor: int, key: bytes = b"") -> bytes:
    """How many replicas shards of a collection are made with from now on."""
    return _encode(14, 2, key, name=name, factor=factor)


def shards_add(job: int, name: str, shards: NewShards, key: bytes = b"") -> bytes:
    """New groups of a collection that are to be filled, and take the place of those that have their hashes now."""
    return _encode(15, 2, key, job=job, name=name, shards=_bodies(shards))


def shards_switch(job: int, name: str, retire: Iterable[int], activate: Iterable[int], key: bytes = b"") -> bytes:
    """Calls go to the groups ``activate`` instead of ``retire``, which have the same hashes."""
    return _encode(16, 2, key, job=job, name=name, retire=list(retire), activate=list(activate))


def shards_forget(groups: Iterable[int], key: bytes = b"") -> bytes:
    """Groups that are being filled or were replaced are dropped; what is no more is left out."""
    return _encode(17, 2, key, groups=list(groups))


def setting_put(name: str, value: bool | int | float | str | None, key: bytes = b"") -> bytes:
    """A setting of the cluster; None: it has the default again."""
    return _encode(18, 2, key, name=name, value=value)


def collection_load(job: int, schema: CollectionSchema, shards: NewShards, replication_factor: int,
                    shard_key: str | None = None, key: bytes = b"") -> bytes:
    """A collection that nobody sees while a job fills it; all its shards are new."""
    return _encode(19, 2, key, job=job, schema=schema.to_json(), shards=_bodies(shards),
                   replication_factor=replication_factor, shard_key=shard_key)


def collection_ready(job: int, name: str, key: bytes = b"") -> bytes:
    """All of it is there: calls go to it."""
    return _encode(20, 2, key, job=job, name=name)


def collection_abandon(job: int, name: str, key: bytes = b"") -> bytes:
    """It was filled in vain."""
    return _encode(21, 2, key, job=job, name=name)
