"""A shard's files out of a repository into a folder; what is there already, from an attempt before, is not fetched."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from vecdb.core.errors import DataCorrupted
from vecdb.core.schema import CollectionSchema
from vecdb.ports.clock import Clock
from vecdb.segment.files import from_os_error, sync_directory
from vecdb.services.backup.manifest import FilePart, ShardManifest, ShardRef
from vecdb.services.backup.repository import Repository, object_key
from vecdb.services.backup.saving import FILES_AT_ONCE, Watch
from vecdb.shard.adoption import Adopt

READ_BYTES: Final = 4 << 20


def fetch_shard(repository: Repository, shard: ShardManifest, folder: Path, watch: Watch, *,
                wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Have the files of a shard (those ``wanted`` by name) be in ``folder``, durably, every byte by its checksum."""
    files = [one for one in shard.files if wanted(one.name)]
    watch.expect(sum(one.bytes for one in files))
    try:
        folders = {folder, *(parent for one in files for parent in (folder / one.name).parents
                             if parent.is_relative_to(folder))}
        for one in sorted(folders):
            one.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, folder, "creating") from error
    with ThreadPoolExecutor(FILES_AT_ONCE, "backup") as pool:
        tasks = [pool.submit(_fetch_file, repository, one, folder / one.name, watch) for one in files]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            for task in tasks:
                task.cancel()
            raise
    try:
        for one in sorted(folders, reverse=True):
            sync_directory(one)
    except OSError as error:
        raise from_os_error(error, folder, "writing") from error


def fetch_state(repository: Repository, schema: CollectionSchema, ref: ShardRef, folder: Path, watch: Watch) -> None:
    """All files of a shard, for a replica of a collection with this schema, whose records they must be able to be."""
    shard = repository.shard(ref)
    if shard.schema.shape != schema.shape:
        raise DataCorrupted(f"the shard {ref.sha256[:16]} at {repository.url} is of other vectors than {schema.name!r}",
                            path=object_key(ref.sha256), region="backup")
    fetch_shard(repository, shard, folder, watch)


class Fetcher:
    """Brings what a replica is to adopt and does not have, of any place: a :data:`vecdb.services.opening.Bring`."""

    def __init__(self, open_repository: Callable[[str], Repository], clock: Clock) -> None:
        self._open = open_repository
        self._clock = clock

    def __call__(self, schema: CollectionSchema, command: Adopt, folder: Path) -> None:
        ref = ShardRef(command.sha256, 0, command.lo, command.last + 1, 0, command.records, command.digest, 0)
        fetch_state(self._open(command.url), schema, ref, folder, Watch(self._clock))


def _fetch_file(repository: Repository, part: FilePart, path: Path, watch: Watch) -> None:
    try:
        if _is_there(part, path):
            watch.passed(part.bytes, moved=False)
            return
        hasher, at = hashlib.sha256(), 0
        with path.open("wb") as file:
            while at < part.bytes:
                piece = part.content if part.content is not None else \
                    repository.objects.read(object_key(part.sha256), at, min(READ_BYTES, part.bytes - at))
                if not piece:
                    break
                hasher.update(piece)
                file.write(piece)
                at += len(piece)
                watch.passed(len(piece), moved=part.content is None)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise from_os_error(error, path, "writing") from error
    if (at, hasher.hexdigest()) != (part.bytes, part.sha256):
        path.unlink(missing_ok=True)
        raise damaged_object(repository, part)


def damaged_object(repository: Repository, part: FilePart) -> DataCorrupted:
    key = object_key(part.sha256)
    return DataCorrupted(f"{key} ({part.name}) at {repository.url} does not match its checksum", path=key,
                         region="backup")


def _is_there(part: FilePart, path: Path) -> bool:
    """Whether an attempt before has fetched all of it."""
    if not path.exists() or path.stat().st_size != part.bytes:
        return False
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            hasher.update(piece)
    return hasher.hexdigest() == part.sha256
