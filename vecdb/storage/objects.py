"""Where backups go: a folder, or a bucket of an S3-compatible object store.

**The library** is obstore, the Python binding of the object_store crate of the Arrow project (MIT over Apache-2.0): one
wheel of 5.6 MB for all Pythons from 3.11 on, without dependencies; it uploads in parts on threads of its own, retries
what may be retried, and takes credentials as the AWS tools do (environment, web identity of Kubernetes, instance).
boto3 is three times as large with its four dependencies and does the same in Python; s3fs stands on aiobotocore, which
holds botocore to one version.  Folders are our own doing: obstore's does not fsync.
"""

import itertools
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NoReturn

from vecdb.core.backups import BackupPlace, parse_place
from vecdb.core.errors import (
    DataCorrupted,
    InvalidArgument,
    PermissionDenied,
    StorageError,
    Unauthenticated,
    VecdbError,
)
from vecdb.ports.objects import ObjectInfo, Objects
from vecdb.segment.files import from_os_error, sync_directory
from vecdb.storage.paths import make_directory

PARTIAL: Final = ".partial"
"""The folder of what is being written."""
PARTIAL_AGE_S: Final = 86_400.0
"""What is older there, nobody is writing any more."""
PART_BYTES: Final = 8 << 20
MAX_PARTS: Final = 9_000
"""Of the 10,000 that S3 allows."""
PARTS_AT_ONCE: Final = 4
LIST_ROWS: Final = 1_000
_COUNTER = itertools.count(1)


@dataclass(frozen=True, slots=True)
class ObjectAccess:
    """How object stores are reached: what is empty is taken from where the AWS tools take it.

    ``checksums``: uploads carry a SHA-256 that the store compares; for stores that do not know of it there is False.
    """

    endpoint: str = ""
    region: str = ""
    access_key_id: str = ""
    secret_access_key: str = ""
    session_token: str = ""
    virtual_hosted: bool = False
    checksums: bool = True
    retry_s: float = 60.0

    def __repr__(self) -> str:
        return f"ObjectAccess(endpoint={self.endpoint!r}, region={self.region!r})"


def open_objects(url: str, access: ObjectAccess | None = None, *, create: bool = True) -> Objects:
    """The place of ``file:///path`` or ``s3://bucket/prefix``; raises ``InvalidArgument`` or ``StorageError``.

    A folder is made where it is missing and ``create``; a bucket never.
    """
    place = parse_place(url)
    if place.scheme == "file":
        return DirectoryObjects(Path(place.path), create=create)
    return BucketObjects(place, access or ObjectAccess())


class DirectoryObjects:
    """A folder, maybe one that several machines have mounted.  Files appear by a rename and are synced, with their
    folders, before anybody is told.
    """

    def __init__(self, root: Path, *, create: bool = True) -> None:
        self._root = root
        self.url = BackupPlace("file", "", str(root)).url
        self._made: set[Path] = set()
        if create:
            make_directory(root)
        elif not root.is_dir():
            raise StorageError(f"there is no folder {root}", path=str(root), missing=True)
        self._forget_partials()

    def put(self, key: str, data: bytes, *, new: bool = False) -> bool:
        return self._write(key, (data,), len(data), new=new)

    def upload(self, key: str, pieces: Iterable[bytes], size: int) -> None:
        self._write(key, pieces, size, new=False)

    def _write(self, key: str, pieces: Iterable[bytes], size: int, *, new: bool) -> bool:
        target = self._path(key)
        partial = self._root / PARTIAL / f"{os.getpid()}-{threading.get_ident()}-{next(_COUNTER)}-{time.time_ns()}"
        try:
            self._make(target.parent)
            self._make(partial.parent)
            try:
                with open(partial, "xb") as file:
                    for piece in pieces:
                        file.write(piece)
                    file.flush()
                    if file.tell() != size:
                        raise DataCorrupted(f"{key} should have {size} bytes and got {file.tell()}", path=key)
                    os.fsync(file.fileno())
                if new:
                    os.link(partial, target)
                else:
                    os.replace(partial, target)
            finally:
                partial.unlink(missing_ok=True)
            sync_directory(target.parent)
        except FileExistsError:
            return False
        except OSError as error:
            raise from_os_error(error, target, "writing") from error
        return True

    def _make(self, folder: Path) -> None:
        if folder not in self._made:
            make_directory(folder)
            self._made.add(folder)

    def get(self, key: str) -> bytes | None:
        path = self._path(key)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise from_os_error(error, path, "reading") from error

    def read(self, key: str, offset: int, length: int) -> bytes:
        path = self._path(key)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.pread(handle, length, offset)
            finally:
                os.close(handle)
        except FileNotFoundError:
            raise _missing(key, self.url) from None
        except OSError as error:
            raise from_os_error(error, path, "reading") from error

    def stat(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise from_os_error(error, path, "looking for") from error
        return ObjectInfo(key, found.st_size, found.st_mtime)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        start = self._path(prefix) if prefix else self._root

        def refused(error: OSError) -> NoReturn:
            raise error

        try:
            for where, folders, names in os.walk(start, onerror=refused):
                folders[:] = [one for one in folders if one != PARTIAL]
                for name in names:
                    with suppress(FileNotFoundError):  # deleted meanwhile
                        path = Path(where, name)
                        found = path.stat()
                        yield ObjectInfo(path.relative_to(self._root).as_posix(), found.st_size, found.st_mtime)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise from_os_error(error, start, "listing") from error

    def delete(self, keys: Iterable[str]) -> None:
        touched: set[Path] = set()
        for key in keys:
            path = self._path(key)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise from_os_error(error, path, "deleting") from error
            touched.add(path.parent)
        for folder in touched:
            with suppress(FileNotFoundError):
                sync_directory(folder)

    def _path(self, key: str) -> Path:
        _check_key(key)
        return self._root / key

    def _forget_partials(self) -> None:
        """What killed writers left."""
        with suppress(OSError):
            for path in (self._root / PARTIAL).iterdir():
                if path.stat().st_mtime < time.time() - PARTIAL_AGE_S:
                    path.unlink(missing_ok=True)


class BucketObjects:
    """A prefix of a bucket.  Parts of uploads that were killed stay until a lifecycle rule of the bucket takes them."""

    def __init__(self, place: BackupPlace, access: ObjectAccess) -> None:
        import obstore
        from obstore.store import S3Store

        self.url = place.url
        self._api = obstore
        self._secrets = [one for one in (access.secret_access_key, access.session_token) if one]
        config: Any = {"virtual_hosted_style_request": access.virtual_hosted}
        for name in ("endpoint", "region", "access_key_id", "secret_access_key", "session_token"):
            if getattr(access, name):
                config[name] = getattr(access, name)
        if access.checksums:
            config["checksum_algorithm"] = "SHA256"
        try:
            self._store = S3Store(place.bucket, prefix=place.path or None, config=config,
                                  client_options={"allow_http": access.endpoint.startswith("http://")},
                                  retry_config={"retry_timeout": timedelta(seconds=access.retry_s), "max_retries": 10})
        except Exception as error:
            raise self._error(error, place.url, "opening") from error

    def put(self, key: str, data: bytes, *, new: bool = False) -> bool:
        from obstore.exceptions import AlreadyExistsError

        _check_key(key)
        try:
            self._api.put(self._store, key, data, mode="create" if new else "overwrite", use_multipart=False)
        except AlreadyExistsError:
            return False
        except Exception as error:
            raise self._error(error, key, "writing") from error
        return True

    def upload(self, key: str, pieces: Iterable[bytes], size: int) -> None:
        _check_key(key)
        failed: list[VecdbError] = []

        def watched() -> Iterator[bytes]:
            sent = 0
            try:
                for piece in pieces:
                    sent += len(piece)
                    yield piece
                if sent != size:
                    raise DataCorrupted(f"{key} should have {size} bytes and got {sent}", path=key)
            except VecdbError as error:
                failed.append(error)  # on its way through the library it loses its class
                raise

        part = max(PART_BYTES, -(-size // MAX_PARTS))
        try:
            if size <= part:
                self._api.put(self._store, key, b"".join(watched()), use_multipart=False)
            else:
                self._api.put(self._store, key, watched(), chunk_size=part, max_concurrency=PARTS_AT_ONCE)
        except Exception as error:
            if failed:
                raise failed[0] from None
            raise self._error(error, key, "writing") from error

    def get(self, key: str) -> bytes | None:
        _check_key(key)
        try:
            return bytes(self._api.get(self._store, key).bytes())
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._error(error, key, "reading") from error

    def read(self, key: str, offset: int, length: int) -> bytes:
        _check_key(key)
        try:
            return bytes(self._api.get(self._store, key, options={"range": (offset, offset + length)}).bytes())
        except FileNotFoundError:
            raise _missing(key, self.url) from None
        except Exception as error:
            raise self._error(error, key, "reading") from error

    def stat(self, key: str) -> ObjectInfo | None:
        _check_key(key)
        try:
            found = self._api.head(self._store, key)
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._error(error, key, "looking for") from error
        return ObjectInfo(key, int(found["size"]), found["last_modified"].timestamp())

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        if prefix:
            _check_key(prefix)
        try:
            for rows in self._api.list(self._store, prefix or None, chunk_size=LIST_ROWS):
                for one in rows:
                    yield ObjectInfo(one["path"], int(one["size"]), one["last_modified"].timestamp())
        except Exception as error:
            raise self._error(error, prefix or self.url, "listing") from error

    def delete(self, keys: Iterable[str]) -> None:
        wanted = [*keys]
        for at in range(0, len(wanted), LIST_ROWS):
            some = wanted[at : at + LIST_ROWS]
            for key in some:
                _check_key(key)
            try:
                self._api.delete(self._store, some)
            except FileNotFoundError:  # the library says so of folders; S3 deletes what is not there
                continue
            except Exception as error:
                raise self._error(error, some[0], "deleting") from error

    def _error(self, error: Exception, key: str, doing: str) -> VecdbError:
        from obstore import exceptions

        text = f"{doing} {key} at {self.url}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        for secret in self._secrets:
            text = text.replace(secret, "***")
        if isinstance(error, exceptions.PermissionDeniedError | PermissionError):
            return PermissionDenied(text)
        if isinstance(error, exceptions.UnauthenticatedError):
            return Unauthenticated(text)
        if isinstance(error, exceptions.NotFoundError | FileNotFoundError):
            return StorageError(f"{text}: is there such a bucket?", path=self.url)
        if isinstance(error, exceptions.InvalidPathError | exceptions.UnknownConfigurationKeyError):
            return InvalidArgument("url", text, got=key[:80])
        return StorageError(text, path=self.url)


def _check_key(key: str) -> None:
    parts = key.removesuffix("/").split("/")
    if not key.isascii() or any(part in ("", ".", "..", PARTIAL) for part in parts) or "\\" in key or "\0" in key:
        raise InvalidArgument("key", "is no key of an object", got=key[:80], limit="a/b/c")


def _missing(key: str, url: str) -> DataCorrupted:
    return DataCorrupted(f"{key} is missing at {url}", path=key, region="backup")
