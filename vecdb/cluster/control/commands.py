"""The commands of the control group, to bytes and back.  See the package for what each does."""

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
import xxhash

from vecdb.cluster.control.entries import node_of
from vecdb.core.calls import MAX_KEY_BYTES
from vecdb.core.cluster import HASH_SPACE, MAX_COLLECTION_SHARDS
from vecdb.core.errors import InvalidArgument, LimitExceeded, VecdbError
from vecdb.core.limits import MAX_WORD
from vecdb.core.schema import CollectionSchema, check_name

VERSION: Final = 2
"""The latest version of commands that this code reads and writes."""
CREATE: Final = 1
DROP: Final = 2

MAX_VOTERS: Final = 7
"""Replicas of a new group: more only cost latency."""

_HEAD: Final = struct.Struct("<BBB")
_REPLICA: Final = re.compile(r"([^/\x00-\x1f]{1,64})/(0|[1-9][0-9]{0,9})")

ShardPlan = tuple[int, int, tuple[str, ...]]
"""Of a new shard: the hashes it has (``lo``, ``hi``), and its group's first voters."""


@dataclass(frozen=True, slots=True)
class Create:
    schema: CollectionSchema
    shards: tuple[ShardPlan, ...]
    replication_factor: int
    shard_key: str | None = None

    @property
    def content(self) -> Any:
        """What a retry has in common: another leader may choose other replicas, and other shards."""
        schema = self.schema.to_json()
        return schema if self.shard_key is None else [schema, self.shard_key]

    @property
    def subject(self) -> str:
        return self.schema.name


@dataclass(frozen=True, slots=True)
class Drop:
    name: str

    @property
    def content(self) -> Any:
        return self.name

    @property
    def subject(self) -> str:
        return self.name


Command = Create | Drop


# --- writing --------------------------------------------------------------------------------------


def create(schema: CollectionSchema, replicas: Iterable[str], key: bytes = b"") -> bytes:
    """The command that makes a collection of one shard with as many replicas as it should have.

    Nodes of the release that knew no other collections read it too.
    """
    return _encode(CREATE, 1, key, {"schema": schema.to_json(), "replicas": list(replicas)})


def create_shards(schema: CollectionSchema, shards: Sequence[tuple[int, int, Iterable[str]]], replication_factor: int,
                  shard_key: str | None = None, key: bytes = b"") -> bytes:
    """The command that makes a collection.  ``shards``: ``(lo, hi, replicas)``, in order and without gaps."""
    plans = [(lo, hi, tuple(replicas)) for lo, hi, replicas in shards]
    if shard_key is None and [(lo, hi, len(of)) for lo, hi, of in plans] == [(0, HASH_SPACE, replication_factor)]:
        return create(schema, plans[0][2], key)
    return _encode(CREATE, 2, key, {"schema": schema.to_json(), "replication_factor": replication_factor,
                                    "shard_key": shard_key, "shards": [(lo, hi - 1, of) for lo, hi, of in plans]})


def drop(name: str, key: bytes = b"") -> bytes:
    """The command that takes a collection away, with all its records."""
    return _encode(DROP, 1, key, {"name": name})


def _encode(opcode: int, version: int, key: bytes, body: dict[str, Any]) -> bytes:
    if len(key) > MAX_KEY_BYTES:
        raise LimitExceeded("idempotency_key", f"{len(key)} bytes, more than {MAX_KEY_BYTES}", got=len(key),
                            limit=MAX_KEY_BYTES)
    return _HEAD.pack(opcode, version, len(key)) + key + orjson.dumps(body, option=orjson.OPT_SORT_KEYS)


def version_of(command: bytes) -> int:
    """The version of nodes that read a command which was made here."""
    return command[1]


# --- reading --------------------------------------------------------------------------------------


def decode(command: bytes) -> tuple[Command, bytes]:
    """The command and its key (empty: none); ``InvalidArgument`` for bytes that are none."""
    if len(command) < _HEAD.size:
        raise _refused("is cut short", got=len(command), limit="a command")
    opcode, version, length = _HEAD.unpack_from(command)
    if not 1 <= version <= VERSION:
        raise _refused(f"has version {version}, and this one reads {VERSION}", got=version, limit=VERSION)
    key, rest = command[_HEAD.size:_HEAD.size + length], command[_HEAD.size + length:]
    if length > MAX_KEY_BYTES or len(key) != length:
        raise _refused("has a key that is cut short or too long", got=length, limit=MAX_KEY_BYTES)
    try:
        return _body(opcode, version, orjson.loads(rest)), key
    except InvalidArgument:
        raise
    except (VecdbError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _refused(f"cannot be read: {type(error).__name__}", got=opcode, limit="a command") from error


def _body(opcode: int, version: int, body: Mapping[str, Any]) -> Command:
    read = _READERS.get((opcode, version))
    found = None if read is None else read(body)
    if found is None:
        raise _refused("has an opcode or fields that this version does not know", got=opcode,
                       limit=sorted({one for one, _ in _READERS}))
    return found


def _create_one(body: Mapping[str, Any]) -> Create | None:
    if set(body) != {"schema", "replicas"}:
        return None
    replicas = check_replicas(body["replicas"])
    return Create(_schema(body["schema"]), ((0, HASH_SPACE, replicas),), len(replicas))


def _create(body: Mapping[str, Any]) -> Create | None:
    if set(body) != {"schema", "replication_factor", "shard_key", "shards"}:
        return None
    return Create(_schema(body["schema"]), check_shards((lo, last + 1, of) for lo, last, of in body["shards"]),
                  check_factor(body["replication_factor"]), check_shard_key(body["shard_key"]))


def _drop(body: Mapping[str, Any]) -> Drop | None:
    return Drop(check_name(body["name"])) if set(body) == {"name"} else None


_READERS: Final = {(CREATE, 1): _create_one, (CREATE, 2): _create, (DROP, 1): _drop}
"""By opcode and version: None where the fields are others."""


def _refused(message: str, *, got: Any, limit: Any) -> InvalidArgument:
    return InvalidArgument("command", message, got=got, limit=limit)


def fingerprint(command: Command) -> int:
    """Of what two commands under one key must have in common."""
    return xxhash.xxh3_64_intdigest(orjson.dumps(command.content, option=orjson.OPT_SORT_KEYS))


# --- what must make sense -------------------------------------------------------------------------


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


def check_shards(shards: Iterable[tuple[int, int, Iterable[object]]], lo: int = 0, hi: int = HASH_SPACE
                 ) -> tuple[ShardPlan, ...]:
    """``InvalidArgument`` unless they are in order and have every hash from ``lo`` to ``hi`` once."""
    found: list[ShardPlan] = []
    at = lo
    for begin, end, replicas in shards:
        if type(begin) is not int or type(end) is not int or begin != at or not begin < end <= hi:
            raise InvalidArgument("shards", "must be in order, without gaps, and not empty", got=[str(begin), str(end)],
                                  limit=str(at))
        if len(found) == MAX_COLLECTION_SHARDS:
            raise LimitExceeded("shards", f"more than {MAX_COLLECTION_SHARDS} of one collection",
                                limit=MAX_COLLECTION_SHARDS)
        found.append((begin, end, check_replicas(replicas)))
        at = end
    if at != hi:
        raise InvalidArgument("shards", "do not have every hash", got=str(at), limit=str(hi))
    return tuple(found)


def check_factor(value: object) -> int:
    if type(value) is not int or not 1 <= value <= MAX_VOTERS:
        raise LimitExceeded("replication_factor", f"must be 1 to {MAX_VOTERS}", got=str(value)[:80],
                            limit=f"1..{MAX_VOTERS}")
    return value


def check_shard_key(value: object) -> str | None:
    """The dotted path of a metadata field, or None."""
    if value is not None and (not isinstance(value, str) or not 1 <= len(value) <= MAX_WORD or not value.isprintable()):
        raise InvalidArgument("shard_key", f"must be a metadata field of at most {MAX_WORD} characters",
                              got=str(value)[:80], limit=MAX_WORD)
    return value


def _schema(value: dict[str, Any]) -> CollectionSchema:
    schema = CollectionSchema.from_json(value)
    check_name(schema.name)  # what is stored may have a label's
    return schema
