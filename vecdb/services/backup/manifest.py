"""What a snapshot is made of, and how that is written down."""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import orjson

from vecdb.core.backups import CollectionBackupInfo, SnapshotInfo, check_snapshot_name
from vecdb.core.cluster import HASH_SPACE
from vecdb.core.errors import DataCorrupted, FormatMismatch, VecdbError
from vecdb.core.schema import CollectionSchema
from vecdb.shard.digest import MODULUS

FORMAT: Final = 1
INLINE_BYTES: Final = 4 << 10
"""A file up to this size stands in the manifest."""
Content: TypeAlias = bytes
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_DIGEST: Final = re.compile(r"[0-9a-f]{32}")
_FILE: Final = re.compile(r"rows/[A-Za-z0-9_][A-Za-z0-9._-]*|segments/\d{8}/[a-z]+\.vdb")


@dataclass(frozen=True, slots=True)
class FilePart:
    """A file of a shard.  ``content``: all of it, if it is small; else it is the object of its checksum."""

    name: str
    bytes: int
    sha256: str
    content: Content | None = None


@dataclass(frozen=True, slots=True)
class ShardManifest:
    """A shard at one place in its log; hashes ``lo`` to ``hi`` (exclusive) are its.  ``digest``: of its records."""

    schema: CollectionSchema
    lo: int
    hi: int
    log_index: int
    term: int
    records: int
    digest: str
    files: tuple[FilePart, ...]

    @property
    def size(self) -> int:
        return sum(one.bytes for one in self.files)

    @property
    def objects(self) -> dict[str, int]:
        """Checksums of the objects it needs, with their sizes."""
        return {one.sha256: one.bytes for one in self.files if one.content is None}

    def to_bytes(self) -> bytes:
        return _dump({"format": FORMAT, "schema": self.schema.to_json(), "lo": self.lo, "last": self.hi - 1,
                      "log_index": self.log_index, "term": self.term, "records": self.records, "digest": self.digest,
                      "files": [[one.name, one.bytes, one.sha256, None if one.content is None
                                 else base64.b64encode(one.content).decode()] for one in self.files]})

    @classmethod
    def from_bytes(cls, value: bytes, key: str) -> "ShardManifest":
        """Raises ``DataCorrupted`` or ``FormatMismatch`` for what is none."""
        parts = _load(value, key)
        with _Reading(key):
            files = tuple(_file(*one) for one in parts["files"])
            _require(len({one.name for one in files}) == len(files))
            return cls(CollectionSchema.from_json(parts["schema"]), *_range(parts), int(parts["log_index"]),
                       int(parts["term"]), _count(parts["records"]), _matched(_DIGEST, parts["digest"]), files)


@dataclass(frozen=True, slots=True)
class ShardRef:
    """A shard of a snapshot: the checksum of its manifest, and what is told without reading that.

    ``group``: its number where it was; ``node``: who gave it; ``added``: bytes that were not there before.
    """

    sha256: str
    group: int
    lo: int
    hi: int
    log_index: int
    records: int
    digest: str
    bytes: int
    node: str = ""
    added: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"sha256": self.sha256, "group": self.group, "lo": self.lo, "last": self.hi - 1,
                "log_index": self.log_index, "records": self.records, "digest": self.digest, "bytes": self.bytes,
                "node": self.node, "added": self.added}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ShardRef":
        return cls(_matched(_SHA256, value["sha256"]), int(value["group"]), *_range(value), int(value["log_index"]),
                   _count(value["records"]), _matched(_DIGEST, value["digest"]), _count(value["bytes"]),
                   str(value["node"]), _count(value["added"]))


@dataclass(frozen=True, slots=True)
class CollectionManifest:
    """A collection of a snapshot, its shards in the order of their ranges."""

    schema: CollectionSchema
    replication_factor: int
    shard_key: str | None
    shards: tuple[ShardRef, ...]

    @property
    def name(self) -> str:
        return self.schema.name

    @property
    def records(self) -> int:
        return sum(one.records for one in self.shards)

    @property
    def digest(self) -> str:
        """The sum over the shards: the same for any number of them."""
        return f"{sum(int(one.digest, 16) for one in self.shards) % MODULUS:032x}"

    def to_json(self) -> dict[str, Any]:
        return {"schema": self.schema.to_json(), "replication_factor": self.replication_factor,
                "shard_key": self.shard_key, "shards": [one.to_json() for one in self.shards]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "CollectionManifest":
        shards = tuple(map(ShardRef.from_json, value["shards"]))
        _require([one.lo for one in shards] == [0, *(one.hi for one in shards[:-1])] and shards[-1].hi == HASH_SPACE)
        key = value["shard_key"]
        return cls(CollectionSchema.from_json(value["schema"]), int(value["replication_factor"]),
                   None if key is None else str(key), shards)

    def info(self) -> CollectionBackupInfo:
        return CollectionBackupInfo(self.name, len(self.shards), self.replication_factor, self.records,
                                    sum(one.bytes for one in self.shards), self.digest, self.shard_key)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``settings`` and ``api_keys``: of the control state, as they stand there.  ``made_by``: the work that made it, by
    which who was killed after writing it knows his own.
    """

    name: str
    created_s: float
    cluster: str
    version: str
    collections: tuple[CollectionManifest, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    api_keys: tuple[Mapping[str, Any], ...] = ()
    made_by: str = ""

    def to_bytes(self) -> bytes:
        body = {"name": self.name, "created_s": self.created_s, "cluster": self.cluster, "version": self.version,
                "collections": [one.to_json() for one in self.collections], "settings": dict(self.settings),
                "api_keys": [dict(one) for one in self.api_keys], "made_by": self.made_by}
        return _dump({"format": FORMAT, "sha256": hashlib.sha256(_dump(body)).hexdigest(), "snapshot": body})

    @classmethod
    def from_bytes(cls, value: bytes, key: str) -> "Snapshot":
        """Raises ``DataCorrupted`` or ``FormatMismatch`` for what is none."""
        parts = _load(value, key)
        with _Reading(key):
            body = parts["snapshot"]
            _require(hashlib.sha256(_dump(body)).hexdigest() == parts["sha256"])
            made = cls(check_snapshot_name(body["name"]), float(body["created_s"]), str(body["cluster"]),
                       str(body["version"]), tuple(map(CollectionManifest.from_json, body["collections"])),
                       dict(body["settings"]), tuple(map(dict, body["api_keys"])), str(body["made_by"]))
            _require(len({one.name for one in made.collections}) == len(made.collections))
            return made

    def info(self) -> SnapshotInfo:
        shards = [shard for one in self.collections for shard in one.shards]
        return SnapshotInfo(self.name, self.created_s, self.cluster, self.version,
                            tuple(one.info() for one in self.collections), sum(one.bytes for one in shards),
                            sum(one.added for one in shards), len(self.api_keys))


def check_sha256(value: object) -> str:
    """Of a message or a row; raises ``ValueError``."""
    return _matched(_SHA256, value)


# --- reading --------------------------------------------------------------------------------------


class _Reading:
    """What goes wrong inside means that the object is damaged."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (VecdbError, ValueError, TypeError, KeyError, IndexError, AttributeError)):
            raise DataCorrupted(f"{self._key} is damaged", path=self._key, region="backup") from error


def _load(value: bytes, key: str) -> dict[str, Any]:
    with _Reading(key):
        parts = orjson.loads(value)
        version = int(parts["format"])
    if version != FORMAT:
        raise FormatMismatch(f"{key} has format {version}, this version reads {FORMAT}", path=key, got=version,
                             limit=FORMAT)
    return dict(parts)


def _dump(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _file(name: object, size: object, sha256: object, content: object) -> FilePart:
    inline = None if content is None else base64.b64decode(str(content), validate=True)
    part = FilePart(_matched(_FILE, name), _count(size), _matched(_SHA256, sha256), inline)
    _require(inline is None or (len(inline), hashlib.sha256(inline).hexdigest()) == (part.bytes, part.sha256))
    return part


def _range(value: Mapping[str, Any]) -> tuple[int, int]:
    lo, hi = int(value["lo"]), int(value["last"]) + 1
    _require(0 <= lo < hi <= HASH_SPACE)
    return lo, hi


def _matched(pattern: re.Pattern[str], value: object) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{str(value)[:80]!r} is not {pattern.pattern}")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("no count")
    return value


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError("what belongs together does not fit")
