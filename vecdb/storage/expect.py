"""What RocksDB's MANIFEST is known to hold, kept beside it, so that a shortened one is not taken for a whole one.

The MANIFEST says which table files there are.  It is a log, and RocksDB takes a cut or zeroed end for a torn write
that never counted: the tables named there are then deleted as leftovers, with every record in them.  From
the MANIFEST alone the two cannot be told apart, so the file ``EXPECT`` remembers: the MANIFEST's name, how many of its
bytes are surely on the disk, and their checksum.  A MANIFEST only grows until a higher-numbered one replaces it;
therefore opening demands: a higher number than remembered, or the same and these very bytes first.

The note is a lower bound and may lag (it is renewed after opening, flushing, compacting, a sync that finds the MANIFEST
grown, and closing).  It never runs ahead: MANIFEST and folder are synced before it is written, so neither a kill nor
a power cut at any moment makes a whole store look short.  A note that is missing, or does not match its own checksum,
demands nothing: it says nothing about the records.
"""

import os
import re
import threading
from pathlib import Path

import xxhash

from vecdb.core.errors import DataCorrupted
from vecdb.segment.files.durable import sync_directory
from vecdb.segment.files.errors import from_os_error

EXPECT_NAME = "EXPECT"
_NOTE = re.compile(r"(MANIFEST-(\d+)) (\d+) ([0-9a-f]{32})\n([0-9a-f]{16})\n")
_CURRENT = re.compile(r"MANIFEST-(\d+)\n")


def check_manifest(directory: Path) -> None:
    """Raise :class:`DataCorrupted` if the MANIFEST in use lacks what the note in ``directory`` says it holds."""
    note = _read_note(directory)
    if note is None:
        return
    name, size, checksum = note
    try:
        current = (directory / "CURRENT").read_text(encoding="ascii")
    except FileNotFoundError:
        raise DataCorrupted(f"{directory / 'CURRENT'} is missing", path=str(directory / "CURRENT"),
                            region="manifest") from None
    except (OSError, ValueError):
        return  # RocksDB says what is wrong with it
    found = _CURRENT.fullmatch(current)
    if found is None or int(found.group(1)) > int(name[len("MANIFEST-"):]):
        return
    path = directory / name
    if current.rstrip("\n") != name:
        raise DataCorrupted(f"{directory / 'CURRENT'} names {current.strip()}, older than {name}, which was in use",
                            path=str(directory / "CURRENT"), region="manifest")
    try:
        data = _first_bytes(path, size)
    except FileNotFoundError:
        raise DataCorrupted(f"{path} is missing", path=str(path), region="manifest") from None
    except OSError as error:
        raise from_os_error(error, path, "checking") from error
    if len(data) < size:
        raise DataCorrupted(f"{path} is damaged: it ends at byte {len(data)}, and had {size} or more",
                            path=str(path), region="manifest", offset=len(data))
    if xxhash.xxh3_128_hexdigest(data) != checksum:
        raise DataCorrupted(f"{path} is damaged: its first {size} bytes are not those that were written",
                            path=str(path), region="manifest", offset=0)


class ManifestNote:
    """Renews the note of one open store; used by any thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._noted: tuple[Path, int] | None = None

    def renew(self) -> None:
        """Note what the MANIFEST holds by now, if it grew or changed.

        Never fails: a disk that refuses keeps the older note, which is true as well.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            noted = self._noted
            if noted is None or noted[0].stat().st_size != noted[1]:
                self._noted = self._write()
        except (OSError, ValueError):
            self._noted = None
        finally:
            self._lock.release()

    def _write(self) -> tuple[Path, int] | None:
        found = _CURRENT.fullmatch((self._directory / "CURRENT").read_text(encoding="ascii"))
        if found is None:
            return None
        path = self._directory / found.group().rstrip("\n")
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(handle).st_size
            os.fsync(handle)
        finally:
            os.close(handle)
        sync_directory(self._directory)  # that CURRENT names it must be as durable as what it holds
        data = _first_bytes(path, size)
        line = f"{path.name} {len(data)} {xxhash.xxh3_128_hexdigest(data)}\n"
        fresh = self._directory / f"{EXPECT_NAME}.tmp"
        with open(fresh, "w", encoding="ascii") as file:
            file.write(f"{line}{xxhash.xxh3_64_hexdigest(line.encode())}\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self._directory / EXPECT_NAME)
        return path, size


def _first_bytes(path: Path, size: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(size)


def _read_note(directory: Path) -> tuple[str, int, str] | None:
    try:
        found = _NOTE.fullmatch((directory / EXPECT_NAME).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    if found is None:
        return None
    name, _, size, checksum, seal = found.groups()
    line = f"{name} {size} {checksum}\n"
    return (name, int(size), checksum) if xxhash.xxh3_64_hexdigest(line.encode()) == seal else None
