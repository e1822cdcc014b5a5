"""What the control state is made of.  Every entry is immutable, and JSON as it stands in a row.

``to_json`` of an entry is what its row holds; ``from_json`` raises ``VecdbError``, ``TypeError``, ``ValueError`` or
``KeyError`` for what is none.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from vecdb.core.access import Grant
from vecdb.core.access import Role as KeyRole
from vecdb.core.cluster import HASH_SPACE, JobState, NodeState, Role, ShardState
from vecdb.core.schema import CollectionSchema, collection_of

__all__ = ["ApiKeyEntry", "CollectionEntry", "JobEntry", "NodeEntry", "ShardEntry", "TokenEntry", "collection_of",
           "node_of"]

FIRST_COMMANDS: Final = 2
"""The version of commands that nodes read which were the first to announce one."""


def node_of(replica: str) -> str:
    """The node of ``node/number``."""
    return replica.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class CollectionEntry:
    """``shards``: the groups that calls go to, in the order of their ranges; ``apart``: those that are being filled and
    those that were replaced; ``created``: the command's log index.
    """

    schema: CollectionSchema
    shards: tuple[int, ...]
    replication_factor: int
    shard_key: str | None = None
    created: int = 0
    apart: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return self.schema.name

    @property
    def groups(self) -> tuple[int, ...]:
        """All there are of it."""
        return (*self.shards, *self.apart)

    def to_json(self) -> dict[str, Any]:
        return {"schema": self.schema.to_json(), "shards": self.shards, "replication_factor": self.replication_factor,
                "shard_key": self.shard_key, "created": self.created, "apart": self.apart}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "CollectionEntry":
        _check_fields(value, "schema", "shards", "replication_factor", "shard_key", "created", "apart")
        return cls(CollectionSchema.from_json(value["schema"]), _ints(value["shards"]),
                   int(value["replication_factor"]), value["shard_key"], int(value["created"]), _ints(value["apart"]))


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """A shard of a collection: its group and the hashes ``lo <= hash < hi`` that are its own.

    ``replicas``: the group's first voters, sorted, by the numbers their nodes had then; ``desired``: the nodes that
    should hold it.  ``label``: see :attr:`local_schema`.  ``created``: the command's log index; ``job``: that made it
    or retires it, 0: none.
    """

    schema: CollectionSchema
    group: int
    label: str
    lo: int
    hi: int
    replicas: tuple[str, ...]
    desired: tuple[str, ...]
    state: ShardState = ShardState.ACTIVE
    created: int = 0
    job: int = 0

    @classmethod
    def only(cls, schema: CollectionSchema, group: int, replicas: tuple[str, ...], created: int = 0) -> "ShardEntry":
        """The one shard of a collection that is made with one."""
        return cls(schema, group, schema.name, 0, HASH_SPACE, replicas, tuple(map(node_of, replicas)),
                   created=created)

    @property
    def name(self) -> str:
        """The collection's."""
        return self.schema.name

    @property
    def nodes(self) -> tuple[str, ...]:
        """Who should hold it; who does is told by the group's own configuration."""
        return self.desired

    @property
    def local_schema(self) -> CollectionSchema:
        """The schema under the name that nodes hold the shard under: the collection's for the only shard of one that
        was made with one, else ``name@group``.
        """
        return self.schema if self.label == self.schema.name else self.schema.labelled(self.label)

    def to_json(self) -> dict[str, Any]:
        """Without the schema, which is the collection's; the last hash instead of ``hi``, which has a bit too many."""
        return {"collection": self.name, "group": self.group, "label": self.label, "lo": self.lo, "last": self.hi - 1,
                "replicas": self.replicas, "desired": self.desired, "state": self.state.value,
                "created": self.created, "job": self.job}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], schema: CollectionSchema) -> "ShardEntry":
        _check_fields(value, "collection", "group", "label", "lo", "last", "replicas", "desired", "state", "created",
                      "job")
        if value["collection"] != schema.name or collection_of(value["label"]) != schema.name:
            raise ValueError("a shard of another collection")
        return cls(schema, int(value["group"]), value["label"], int(value["lo"]), int(value["last"]) + 1,
                   tuple(value["replicas"]), tuple(value["desired"]), ShardState(value["state"]),
                   int(value["created"]), int(value["job"]))


@dataclass(frozen=True, slots=True)
class NodeEntry:
    """A node that has announced itself.  ``version``: of its release; ``commands``: the latest version of control
    commands that it reads; ``joined_s`` and ``updated_s``: wall clock.
    """

    name: str
    address: str
    client_address: str = ""
    http_address: str = ""
    role: Role = Role.BOTH
    zone: str = ""
    capacity: float = 1.0
    state: NodeState = NodeState.ACTIVE
    version: str = ""
    commands: int = FIRST_COMMANDS
    joined_s: float = 0.0
    updated_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "address": self.address, "client_address": self.client_address,
                "http_address": self.http_address, "role": self.role.value, "zone": self.zone,
                "capacity": self.capacity, "state": self.state.value, "version": self.version,
                "commands": self.commands, "joined_s": self.joined_s, "updated_s": self.updated_s}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "NodeEntry":
        _check_fields(value, "name", "address", "client_address", "http_address", "role", "zone", "capacity", "state",
                      "version", "commands", "joined_s", "updated_s")
        return cls(**{**value, "role": Role(value["role"]), "state": NodeState(value["state"])})


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """A token to join with, of which only a salted hash (both hex) is kept.

    ``roles``: that who joins with it may have, none: any.  ``expires_s``: wall clock, 0: never.
    """

    id: str
    salt: str
    digest: str
    expires_s: float = 0.0
    roles: tuple[Role, ...] = ()
    created_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "salt": self.salt, "digest": self.digest, "expires_s": self.expires_s,
                "roles": [role.value for role in self.roles], "created_s": self.created_s}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "TokenEntry":
        _check_fields(value, "id", "salt", "digest", "expires_s", "roles", "created_s")
        return cls(**{**value, "roles": tuple(map(Role, value["roles"]))})


@dataclass(frozen=True, slots=True)
class ApiKeyEntry:
    """An API key, as :mod:`vecdb.services.keys` keeps it.  ``secrets``: salt and digest (hex) of each that is good, and
    until when (0: no end).  ``expires_s`` and ``revoked_s``: 0: not.
    """

    id: str
    name: str
    grants: tuple[Grant, ...]
    secrets: tuple[tuple[str, str, float], ...]
    created_s: float = 0.0
    expires_s: float = 0.0
    revoked_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "name": self.name,
                "grants": [[grant.role.word, grant.collections] for grant in self.grants], "secrets": self.secrets,
                "created_s": self.created_s, "expires_s": self.expires_s, "revoked_s": self.revoked_s}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ApiKeyEntry":
        _check_fields(value, "id", "name", "grants", "secrets", "created_s", "expires_s", "revoked_s")
        return cls(**{**value, "grants": tuple(Grant(KeyRole.of(role), tuple(names))
                                               for role, names in value["grants"]),
                      "secrets": tuple((salt, digest, until_s) for salt, digest, until_s in value["secrets"])})


@dataclass(frozen=True, slots=True)
class JobEntry:
    """Work on the cluster.  ``done`` of ``total`` in ``unit`` (``total`` 0: not known).

    ``args``: what was asked; ``data``: what it has to remember from step to step, and nobody else understands.
    """

    id: int
    kind: str
    target: str
    args: Mapping[str, Any] = field(default_factory=dict)
    state: JobState = JobState.WAITING
    phase: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    created_s: float = 0.0
    updated_s: float = 0.0
    error: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "kind": self.kind, "target": self.target, "args": self.args, "state": self.state.value,
                "phase": self.phase, "done": self.done, "total": self.total, "unit": self.unit,
                "created_s": self.created_s, "updated_s": self.updated_s, "error": self.error, "data": self.data}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "JobEntry":
        _check_fields(value, "id", "kind", "target", "args", "state", "phase", "done", "total", "unit", "created_s",
                      "updated_s", "error", "data")
        return cls(**{**value, "state": JobState(value["state"])})


def _check_fields(value: Mapping[str, Any], *fields: str) -> None:
    if set(value) != set(fields):
        raise ValueError("fields of an entry")


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(one) for one in values)
