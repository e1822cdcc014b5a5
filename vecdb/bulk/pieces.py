"""The two pieces of a build, as functions of plain values, which any process may run, here or elsewhere.

Each notes that it is done as its last step, durably; run again by somebody who did not see that, it does the same
again, in folders of its own.
"""

import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from vecdb.bulk.spool import SpoolWriter, gathered, joined, read_spool, spool_of
from vecdb.client.ingest import from_columns
from vecdb.client.parts import batches
from vecdb.cluster.placement import ranges
from vecdb.cluster.routing import Ring, split
from vecdb.core.errors import InvalidArgument
from vecdb.core.records import UpsertBatch
from vecdb.core.schema import CollectionSchema
from vecdb.formats import SourceOptions, open_source
from vecdb.segment.files import from_os_error, sync_directory

if TYPE_CHECKING:
    from vecdb.config import BackupSettings

PARTS: Final = "parts"
SHARDS: Final = "shards"
WORK: Final = "work"
WRITE_RECORDS: Final = 20_000
WRITE_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Range:
    """A shard by its place among ``ranges``."""

    place: int
    lo: int
    hi: int


@dataclass(frozen=True, slots=True)
class PartitionPiece:
    """One input file into spools.  ``options``: of its reader."""

    scratch: Path
    number: int
    path: Path
    options: SourceOptions
    schema: CollectionSchema
    shards: int
    shard_key: str | None


@dataclass(frozen=True, slots=True)
class ShardPiece:
    """The spools of one shard into the place ``url``.  ``files``: how many have spools; ``records``: in them;
    ``memory_bytes``: what the shard may take where it serves, 0: most of this machine's; ``threads``: that build it.
    """

    scratch: Path
    place: int
    lo: int
    hi: int
    files: int
    records: int
    schema: CollectionSchema
    url: str
    settings: "BackupSettings"
    threads: int
    memory_bytes: int


def part_folder(scratch: Path, number: int) -> Path:
    return scratch / PARTS / f"{number:05d}"


def part_note(scratch: Path, number: int) -> Path:
    return scratch / PARTS / f"{number:05d}.json"


def shard_note(scratch: Path, place: int) -> Path:
    return scratch / SHARDS / f"{place:05d}.json"


def partition(piece: PartitionPiece) -> dict[str, Any]:
    """Read a file and spool its records by shard; ``rows`` read, and ``records`` of each shard.

    Raises ``InvalidArgument`` naming file and rows for what cannot be a record.
    """
    ring = Ring([Range(place, lo, hi) for place, (lo, hi) in enumerate(ranges(piece.shards))])
    folder = Path(tempfile.mkdtemp(dir=_made(piece.scratch / WORK), prefix=f"part-{piece.number}-"))
    source = open_source(piece.path, piece.options)
    try:
        out = SpoolWriter(folder / "spools", piece.shards)
        rows = 0
        for batch in source.batches(None):
            try:
                found = from_columns(batch.ids, batch.vectors, batch.metadata)
                for _, command in batches(found.parts, piece.schema, None, whole=False):
                    for part in split(ring, command, piece.shard_key):
                        assert isinstance(part.command, UpsertBatch)
                        out.add(part.shard.place, part.command)
            except InvalidArgument as error:
                last = batch.first_row + len(batch) - 1
                raise InvalidArgument("file", f"{piece.path}, rows {batch.first_row}..{last}: {error.message}",
                                      got=error.fields.get("got"), limit=error.fields.get("limit"),
                                      path=str(piece.path), row=batch.first_row) from error
            rows += len(batch)
        out.finish()
        target = part_folder(piece.scratch, piece.number)
        _move(folder / "spools", target)
        done = {"rows": rows, "records": out.records}
        note(part_note(piece.scratch, piece.number), done)
        return done
    finally:
        source.close()
        shutil.rmtree(folder, ignore_errors=True)


def build_shard(piece: ShardPiece) -> dict[str, Any]:
    """Make a shard of its spools and save it: its reference, as a snapshot has it."""
    from vecdb.app import open_embedded, repositories
    from vecdb.runtime.clock import SystemClock
    from vecdb.services.backup.saving import ShardFacts, Watch, save_shard

    folder = Path(tempfile.mkdtemp(dir=_made(piece.scratch / WORK), prefix=f"shard-{piece.place}-"))
    try:
        database = open_embedded(folder / "data", threads=piece.threads, seal_records=max(1, piece.records),
                                 memory_bytes=piece.memory_bytes, background=False)
        try:
            database.create_collection(piece.schema)
            for number in range(piece.files):
                spool = read_spool(spool_of(part_folder(piece.scratch, number), piece.place))
                for run in gathered(spool, WRITE_RECORDS, WRITE_BYTES):
                    database.upsert(piece.schema.name, joined(run))
            database.optimize(piece.schema.name)
            held = database.snapshot(piece.schema.name)
            try:
                repository = repositories(piece.settings)(piece.url)
                facts = ShardFacts(piece.schema, 0, piece.lo, piece.hi, held.records, held.digest)
                ref = save_shard(repository, held, facts, Watch(SystemClock()))
            finally:
                held.release()
        finally:
            database.close()
        done = ref.to_json()
        note(shard_note(piece.scratch, piece.place), done)
        return done
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- notes ----------------------------------------------------------------------------------------


def note(path: Path, value: dict[str, Any]) -> None:
    """Have ``value`` be in the file, durably, whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        _made(path.parent)
        with partial.open("wb") as file:
            file.write(orjson.dumps(value))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise from_os_error(error, path, "writing") from error


def noted(path: Path) -> dict[str, Any] | None:
    """What a note says; None where there is none."""
    try:
        value: dict[str, Any] = orjson.loads(path.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return None
    except OSError as error:
        raise from_os_error(error, path, "reading") from error
    return value


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, folder, "creating") from error
    return folder


def _move(folder: Path, target: Path) -> None:
    try:
        sync_directory(folder)
        _made(target.parent)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(folder, target)
        sync_directory(target.parent)
    except OSError as error:
        raise from_os_error(error, target, "writing") from error
