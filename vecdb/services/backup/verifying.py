"""Is a snapshot whole?  Every object is read again, and every shard restored into scratch and its records counted."""

import hashlib
import shutil
from pathlib import Path
from typing import Final

from vecdb.core.backups import SnapshotVerification
from vecdb.core.errors import Cancelled, DataCorrupted, FormatMismatch
from vecdb.ports.stores import OpenStore
from vecdb.services.backup.fetching import READ_BYTES, damaged_object, fetch_shard
from vecdb.services.backup.manifest import CollectionManifest, FilePart, ShardManifest, ShardRef
from vecdb.services.backup.reading import ShardReader, is_read
from vecdb.services.backup.repository import Repository, object_key
from vecdb.services.backup.saving import Watch
from vecdb.shard.digest import MODULUS

MOST_PROBLEMS: Final = 100


def verify_snapshot(repository: Repository, name: str, scratch: Path, open_store: OpenStore,
                    watch: Watch) -> SnapshotVerification:
    """Read everything of it; raises ``SnapshotNotFound``, and what the store raises where it cannot be reached.

    ``scratch``: a folder with room for the largest shard; what it holds is deleted.
    """
    snapshot = repository.load(name)
    checked: dict[str, int] = {}
    problems: list[str] = []
    records = shards = 0
    for collection in snapshot.collections:
        for ref in collection.shards:
            shards += 1
            found, told = verify_shard(repository, collection, ref, scratch, open_store, watch, checked)
            records += found
            problems += told
    return SnapshotVerification(name, len(checked), sum(checked.values()), shards, records,
                                tuple(problems[:MOST_PROBLEMS]))


def verify_shard(repository: Repository, collection: CollectionManifest, ref: ShardRef, scratch: Path,
                 open_store: OpenStore, watch: Watch, checked: dict[str, int]) -> tuple[int, list[str]]:
    """Records of a shard as read, and what is wrong with it.  ``checked``: objects that were read, added to."""
    where = f"{collection.name!r}, shard {ref.group}"
    try:
        shard = repository.shard(ref)
        checked[ref.sha256] = len(shard.to_bytes())
        for part in shard.files:  # those that the records are not in; the others are fetched, which reads them
            if part.content is None and not is_read(part.name) and part.sha256 not in checked:
                _read_object(repository, part, watch)
                checked[part.sha256] = part.bytes
        records = _records(repository, shard, scratch, open_store, watch)
        checked |= shard.objects
    except Cancelled:
        raise
    except (DataCorrupted, FormatMismatch) as error:
        return 0, [f"{where}: {error.message}"]
    return records, []


def _read_object(repository: Repository, part: FilePart, watch: Watch) -> None:
    hasher, at = hashlib.sha256(), 0
    while at < part.bytes:
        piece = repository.objects.read(object_key(part.sha256), at, min(READ_BYTES, part.bytes - at))
        if not piece:
            break
        hasher.update(piece)
        at += len(piece)
        watch.passed(len(piece), moved=True)
    found = repository.objects.stat(object_key(part.sha256))
    if hasher.hexdigest() != part.sha256 or found is None or found.bytes != part.bytes:
        raise damaged_object(repository, part)


def _records(repository: Repository, shard: ShardManifest, scratch: Path, open_store: OpenStore, watch: Watch) -> int:
    """How many a shard has when it is opened, all of them hashed; raises where that is not what was saved."""
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        fetch_shard(repository, shard, scratch, watch, wanted=is_read)
        count = total = 0
        with ShardReader(shard.schema, scratch, open_store) as reader:
            for batch in reader.batches():
                count += len(batch.records.ids)
                total += batch.digest
                watch.check()
            applied = reader.state.applied
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if (count, f"{total % MODULUS:032x}", applied) != (shard.records, shard.digest, shard.log_index):
        raise DataCorrupted(f"it opens with {count} records at log index {applied} and was saved with {shard.records} "
                            f"at {shard.log_index}, or their digest differs", path=str(scratch), region="backup")
    return count
