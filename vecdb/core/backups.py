"""Snapshots of collections that are kept elsewhere: their names, their places, and what is told of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from vecdb.core.errors import InvalidArgument

MAX_SNAPSHOT_NAME: Final = 128
MAX_URL: Final = 1_024
PLACES: Final = "file:///path or s3://bucket/prefix"
_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_SNAPSHOT_NAME - 1}}}")
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,62}")
_PREFIX: Final = re.compile(r"[A-Za-z0-9!_.*'()=/-]*")


@dataclass(frozen=True, slots=True)
class BackupPlace:
    """Where snapshots are: a folder (``scheme`` "file", ``path`` absolute) or a bucket ("s3") with a prefix."""

    scheme: str
    bucket: str
    path: str

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.bucket}{'/' if self.bucket and self.path else ''}{self.path}"


def parse_place(url: object) -> BackupPlace:
    """Of ``file:///path`` or ``s3://bucket/prefix``; raises ``InvalidArgument``.

    A URL with a user, a password or a query is refused, and not repeated: secrets are no part of it.
    """
    if not isinstance(url, str) or len(url) > MAX_URL or not url.isprintable():
        raise InvalidArgument("url", f"must be a URL of at most {MAX_URL} characters", got=type(url).__name__,
                              limit=PLACES)
    try:
        parts = urlsplit(url)
        inner = parts.username or parts.password or parts.query or parts.fragment
    except ValueError:
        inner = "?"
        parts = urlsplit("")
    if inner or "@" in parts.netloc:
        raise InvalidArgument("url", "holds more than a place: credentials belong in the settings or the "
                              "environment of the nodes", got="a URL with a user or a query", limit=PLACES)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        path = unquote(parts.path).rstrip("/")
        if path.startswith("/") and "\0" not in path and ".." not in path.split("/"):
            return BackupPlace("file", "", path)
    if parts.scheme == "s3" and _BUCKET.fullmatch(parts.netloc) and _PREFIX.fullmatch(parts.path):
        prefix = "/".join(part for part in parts.path.split("/") if part)
        if not {".", ".."} & set(prefix.split("/")):
            return BackupPlace("s3", parts.netloc, prefix)
    raise InvalidArgument("url", "is no place for snapshots", got=url[:80], limit=PLACES)


def check_snapshot_name(name: object) -> str:
    """Return it, or raise ``InvalidArgument``."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidArgument("snapshot", f"must be 1 to {MAX_SNAPSHOT_NAME} letters, digits, dots, dashes and "
                              "underscores, and begin with a letter or digit", got=str(name)[:80], limit=_NAME.pattern)
    return name


@dataclass(frozen=True, slots=True)
class CollectionBackupInfo:
    """A collection in a snapshot.  ``digest``: the sum of its records' digests, in hex; ``bytes``: of all its files."""

    name: str
    shards: int
    replication_factor: int
    records: int
    bytes: int
    digest: str
    shard_key: str | None = None


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot.  ``bytes``: of all its files; ``added_bytes``: of those that no earlier snapshot had."""

    name: str
    created_s: float
    cluster: str = ""
    version: str = ""
    collections: tuple[CollectionBackupInfo, ...] = ()
    bytes: int = 0
    added_bytes: int = 0
    api_keys: int = 0

    @property
    def records(self) -> int:
        return sum(one.records for one in self.collections)


@dataclass(frozen=True, slots=True)
class SnapshotVerification:
    """What became of reading a whole snapshot again.  ``problems``: what is wrong, for people; none: it is whole."""

    name: str
    objects: int
    bytes: int
    shards: int
    records: int
    problems: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True)
class SnapshotRemoval:
    """What deleting a snapshot gave back.  ``withheld``: why objects that nobody needs were left for the next time."""

    name: str
    objects: int = 0
    bytes: int = 0
    withheld: str = ""


@dataclass(frozen=True, slots=True)
class RestoredCollection:
    """A collection that was made of a snapshot's, under ``name``."""

    name: str
    source: str
    records: int
    digest: str
    details: Mapping[str, Any] = field(default_factory=dict)
