"""Snapshots of a replica: given away by reference, taken piece by piece, installed in one step.

**Given.**  A RocksDB checkpoint and hard links to the sealed segments' files, made at one moment; then, with nobody
waiting, every row is read, and every file, sealed ones against their own checksums, and hashed: what is damaged here is
not passed on, or one flipped bit could become a majority's.  An index that is damaged is left out, since it is made
from the rest.

**Taken.**  A piece is a file named by the checksum and size of what it is to become, so what has come serves a later
attempt, also one from another leader, if the content is the same.  Nothing is believed of a piece but its size, until
it is hashed whole; so a power cut may leave anything in it.

**Installed**: pieces are linked to where a state has them, the state is opened as any opening opens it, its rows are
read (the giver may have read some from memory), its position is compared, and only then the pointer is renamed.
"""

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import xxhash

from vecdb.core.errors import DataCorrupted, FormatMismatch
from vecdb.ports.replicator import Position, SnapshotFile
from vecdb.segment.files import ArrayFile, from_os_error, sync_directory
from vecdb.segment.sealed import INDEX
from vecdb.services.homes import Home
from vecdb.services.recovery import ROWS, SEGMENTS, is_damaged
from vecdb.shard.view import ShardView

if TYPE_CHECKING:
    from vecdb.services.replica import ShardReplica

READ_BYTES: Final = 1 << 20
POSITION: Final = "position"
"""Beside the pieces: what place in the log they are of."""
SYNC_BYTES: Final = 64 << 20
"""Written of a piece between two syncs, so that the last one has little to do."""
_NAME = re.compile(rf"{ROWS}/[A-Za-z0-9_][A-Za-z0-9._-]*|{SEGMENTS}/\d{{8}}/[a-z]+\.vdb")


class ShardSnapshot:
    """A folder of links nobody writes to.  ``records`` and their ``digest``: at its position."""

    def __init__(self, folder: Path, position: Position, files: Sequence[SnapshotFile], records: int,
                 digest: str) -> None:
        self.folder = folder
        self.position = position
        self.files = files
        self.records = records
        self.digest = digest

    def read(self, file: int, offset: int, length: int) -> bytes:
        path = self.folder / self.files[file].name
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.pread(handle, length, offset)
            finally:
                os.close(handle)
        except OSError as error:
            raise from_os_error(error, path, "reading") from error

    def release(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def taken(folder: Path, view: ShardView) -> ShardSnapshot:
    """Of a copy that was made of the moment of ``view``; raises ``DataCorrupted`` if one of its files is damaged."""
    state = view.state
    files = list_files(folder, check=not is_damaged(view))
    return ShardSnapshot(folder, Position(state.applied, state.term), files, state.records, f"{state.digest:032x}")


def list_files(folder: Path, *, check: bool = True) -> list[SnapshotFile]:
    """Every file of a copied state with its checksum.

    ``check``: leave damaged indexes out, and raise ``DataCorrupted`` if a file that cannot be made anew is damaged.
    """
    files: list[SnapshotFile] = []
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(where, name)
            if check and path.suffix == ".vdb" and not _sound(path):
                continue
            size, checksum = hash_file(path)
            files.append(SnapshotFile(path.relative_to(folder).as_posix(), size, checksum))
    return files


def _sound(path: Path) -> bool:
    try:
        ArrayFile.open(path).close()
    except (DataCorrupted, FormatMismatch):
        if path.name != INDEX:
            raise
        return False
    return True


def hash_file(path: Path, hasher: Any = None, start: int = 0) -> tuple[int, int]:
    """Bytes and xxh3-64 of a file, the GIL free; or go on with a ``hasher`` that knows its first ``start`` bytes."""
    hasher = xxhash.xxh3_64() if hasher is None else hasher
    buffer = memoryview(bytearray(READ_BYTES))
    size = start
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while count := os.preadv(handle, [buffer], size):
                hasher.update(buffer[:count])
                size += count
        finally:
            os.close(handle)
    except OSError as error:
        raise from_os_error(error, path, "reading") from error
    return size, hasher.intdigest()


class _Piece:
    """What has come of one file; ``hasher`` knows its first ``hashed`` bytes."""

    def __init__(self, path: Path, size: int, checksum: int) -> None:
        self.path, self.size, self.checksum = path, size, checksum
        self._hasher = xxhash.xxh3_64()
        self._hashed = 0
        self._unsynced = 0

    def have(self) -> int:
        try:
            return min(self.path.stat().st_size, self.size)
        except FileNotFoundError:
            return 0

    def write(self, offset: int, data: bytes) -> None:
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            rest, at = memoryview(data)[:max(0, self.size - offset)], offset
            while rest:
                written = os.pwrite(handle, rest, at)
                rest, at = rest[written:], at + written
            if offset == self._hashed:
                self._hasher.update(data)
                self._hashed = at
            self._unsynced += len(data)
            if self._unsynced >= SYNC_BYTES or at == self.size:
                os.fsync(handle)
                self._unsynced = 0
        finally:
            os.close(handle)

    def complete(self) -> bool:
        """Whether it is whole, and durable; what is not is forgotten."""
        if self.size == 0:
            self.write(0, b"")
        size, checksum = self._hashed, self._hasher.intdigest()
        if size != self.size and self.path.exists():  # some of it came in an earlier attempt
            size, checksum = hash_file(self.path)
            self._sync()
        if (size, checksum) == (self.size, self.checksum) and self.path.exists():
            return True
        self.path.unlink(missing_ok=True)
        self._hasher, self._hashed = xxhash.xxh3_64(), 0
        return False

    def _sync(self) -> None:
        handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class ShardIncoming:
    """See :class:`vecdb.ports.replicator.Incoming`."""

    def __init__(self, replica: "ShardReplica", position: Position, files: Sequence[SnapshotFile]) -> None:
        self._replica = replica
        self._home = replica.home
        self._position = position
        self._files = files
        self._known: dict[Path, _Piece] = {}
        self._pieces = [self._piece(file) for file in files]
        self._begun = False

    def _piece(self, file: SnapshotFile) -> _Piece:
        path = self._home.incoming / f"{file.checksum:016x}-{file.bytes}"
        return self._known.setdefault(path, _Piece(path, file.bytes, file.checksum))

    def have(self, file: int) -> int:
        return self._pieces[file].have()

    def write(self, file: int, offset: int, data: bytes) -> None:
        try:
            self._begin()
            self._home.incoming.mkdir(exist_ok=True)  # a checkpoint may have found that the log has passed it
            self._pieces[file].write(offset, data)
        except OSError as error:
            raise from_os_error(error, self._pieces[file].path, "writing") from error

    def _begin(self) -> None:
        """Make the folder, and forget pieces that are not of this snapshot."""
        if self._begun:
            return
        self._home.incoming.mkdir(exist_ok=True)
        for path in self._home.incoming.iterdir():
            if path not in self._known:
                path.unlink()
        (self._home.incoming / POSITION).write_text(str(self._position.log_index), encoding="ascii")
        self._begun = True

    def install(self) -> None:
        for file in self._files:
            if not _NAME.fullmatch(file.name):
                raise DataCorrupted(f"the snapshot has a file {file.name!r}", path=file.name, region="snapshot")
        try:
            self._begin()
            bad = [piece for piece in self._known.values() if not piece.complete()]
            if bad:
                raise DataCorrupted(f"{len(bad)} files of the snapshot do not match their checksums",
                                    path=str(bad[0].path), region="snapshot")
            sync_directory(self._home.incoming)
        except OSError as error:
            raise from_os_error(error, self._home.incoming, "checking") from error
        self._replica.install(self._position, self._lay_out, self._forget)

    def _lay_out(self, state: Path) -> None:
        """Make a state of the pieces, durably."""
        try:
            folders = {state}
            for file, piece in zip(self._files, self._pieces, strict=True):
                path = state / file.name
                for folder in reversed(path.parents):
                    if folder.is_relative_to(state):
                        folder.mkdir(exist_ok=True)
                        folders.add(folder)
                os.link(piece.path, path)
            for folder in sorted(folders, reverse=True):
                sync_directory(folder)
            sync_directory(state.parent)
        except FileExistsError as error:
            raise DataCorrupted("the snapshot has two files of one name", path=str(state), region="snapshot") from error
        except OSError as error:
            raise from_os_error(error, state, "laying out") from error

    def _forget(self) -> None:
        shutil.rmtree(self._home.incoming, ignore_errors=True)
        self._begun = False

    def close(self) -> None:
        """What has come stays."""


def forget_passed(home: Home, applied: int) -> None:
    """Forget what has come of a snapshot that the state has passed by other ways; nothing else would."""
    with suppress(OSError, ValueError):
        if int((home.incoming / POSITION).read_text(encoding="ascii")) <= applied:
            shutil.rmtree(home.incoming, ignore_errors=True)


def check_position(found: Position, wanted: Position, state: Path) -> None:
    """Raise ``DataCorrupted`` if a state is not of the place in the log that its snapshot was said to be."""
    if found != wanted:
        raise DataCorrupted(f"the snapshot is of {tuple(found)} and was said to be of {tuple(wanted)}", path=str(state),
                            region="snapshot")
