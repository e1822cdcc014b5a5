"""The audit log: one line of JSON for each admin call, appended to a file that only the node's user may read.

Who (name and id of the key, certificate, address), what (method, collection, arguments without secrets), how it ended,
when, and the request id that other logs know it by.  Lines are written and fsynced in groups by one thread, so that an
event loop never waits for a disk; a line is on the disk some milliseconds after its call was answered.

**When the log cannot be written** the node goes on and says so as an error with the whole line in it, so that the
record survives in the node's own log: a full disk must not keep an operator from dropping a collection.

**Calls that failed** are what a stranger can make as many of as he likes, to rotate older lines away.  So they get a
hundred lines at once and one a second afterwards; how many went without one stands in the next, as ``suppressed``.
With the default sizes that leaves several days at least.
"""

import os
import stat
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson

from vecdb.core.access import Principal, mask_secrets
from vecdb.core.errors import InvalidArgument, StorageError
from vecdb.core.limits import MAX_NAME_BYTES
from vecdb.ports.clock import Clock
from vecdb.ports.tell import Tell, tell_nobody

MAX_FILE_BYTES: Final = 32 << 20
KEPT_FILES: Final = 8
MAX_LINE_BYTES: Final = 8 << 10
MAX_WAITING: Final = 10_000
FAILED_AT_ONCE: Final = 100
FAILED_PER_S: Final = 1.0
_TEXT_MAX: Final = 512
_ITEMS_MAX: Final = 64
_SECRET_NAMES: Final = ("secret", "password", "token", "authorization", "api_key", "apikey", "admin_key", "private")
_REFUSED: Final = frozenset(("UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED"))
"""Of these the arguments are not kept: nothing was done with them, and a stranger chose them."""


@dataclass(frozen=True, slots=True)
class AuditLimits:
    """``file_bytes``: from which a file is put aside; ``kept``: how many of those there are at most (1 or more)."""

    file_bytes: int = MAX_FILE_BYTES
    kept: int = KEPT_FILES


class AuditLog:
    """Of one node.  Opened at once, so that a path which cannot be written to is an error of the start.

    ``record`` may be called from any thread and returns without waiting; ``flush`` waits for the disk.
    Raises :class:`StorageError`, or :class:`InvalidArgument` where the path is no regular file.
    """

    def __init__(self, path: Path, clock: Clock, tell: Tell = tell_nobody,
                 limits: AuditLimits = AuditLimits()) -> None:
        self._path, self._clock, self._tell, self._limits = path, clock, tell, limits
        self._waiting: deque[bytes] = deque()
        self._wake = threading.Condition()
        self._writing = self._closed = False
        self._failed_free_at = 0.0
        self._suppressed = 0
        self._dropped = 0
        self.failures = 0
        """Lines that did not reach the file, for metrics."""
        self._file = -1
        self._size = 0
        try:
            self._open()
        except OSError as error:
            raise StorageError(f"the audit log {path} cannot be opened: {error.strerror}", path=str(path)) from None
        self._thread: threading.Thread | None = None

    def record(self, *, principal: Principal, peer: str, method: str, collection: str, outcome: str, request_id: str,
               arguments: Mapping[str, Any]) -> None:
        """Note one call.  ``outcome``: the canonical status name."""
        now = self._clock.wall()
        with self._wake:
            suppressed = 0
            if outcome != "OK":
                if not self._failed_gets_a_line():
                    self._suppressed += 1
                    return
                suppressed, self._suppressed = self._suppressed, 0
            if self._closed or len(self._waiting) >= MAX_WAITING:
                self._dropped += 1
                return
            who = {"name": principal.name, "key": principal.id, "certificate": principal.certificate, "peer": peer}
            entry: dict[str, Any] = {
                "time": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds"),
                "who": {name: value for name, value in who.items() if value}, "method": method,
                "collection": without_secrets(collection[:MAX_NAME_BYTES + 1]), "outcome": outcome,
                "request_id": without_secrets(request_id)}
            if outcome not in _REFUSED:
                entry["arguments"] = without_secrets(arguments)
            if suppressed:
                entry["suppressed"] = suppressed
            self._waiting.append(_line(entry))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="vecdb-audit", daemon=True)
                self._thread.start()
            self._wake.notify_all()

    def flush(self) -> None:
        """Return once every line recorded before is on the disk, or was told to be lost."""
        with self._wake:
            self._wake.wait_for(lambda: not self._waiting and not self._writing)

    def close(self) -> None:
        """Write what waits, and end; a second call does nothing."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _failed_gets_a_line(self) -> bool:
        now = self._clock.monotonic()
        free_at = max(self._failed_free_at, now)
        if free_at - now > (FAILED_AT_ONCE - 1) / FAILED_PER_S:
            return False
        self._failed_free_at = free_at + 1.0 / FAILED_PER_S
        return True

    # -- the thread

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._closed)
                lines, dropped = list(self._waiting), self._dropped
                self._waiting.clear()
                self._dropped = 0
                self._writing = bool(lines)
            if lines:
                self._write_all(lines, dropped)
            with self._wake:
                self._writing = False
                self._wake.notify_all()
                if self._closed and not self._waiting:
                    return

    def _write_all(self, lines: list[bytes], dropped: int) -> None:
        if dropped:
            self.failures += dropped
            self._tell("error", "audit_lines_lost", lines=dropped, path=str(self._path),
                       reason="the disk is slower than the calls")
        written = 0
        try:
            for line in lines:
                self._prepare(len(line))
                self._append(line)
                written += 1
            os.fsync(self._file)
        except OSError as error:
            self.failures += len(lines) - written or 1
            for line in lines[written:] or lines[-1:]:
                self._tell("error", "audit_not_written", path=str(self._path), reason=error.strerror,
                           line=line.decode().rstrip())

    def _append(self, line: bytes) -> None:
        done = os.write(self._file, line)
        self._size += done
        if done < len(line):  # a full disk took a part: end that line, so that the next can be read
            os.ftruncate(self._file, self._size - done)
            self._size -= done
            raise OSError(28, os.strerror(28))

    # -- files

    def _open(self) -> None:
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                raise InvalidArgument("settings.security.audit_file", f"{self._path} is no regular file",
                                      got=str(self._path), limit="a file")
            if stat.S_IMODE(found.st_mode) & 0o077:
                os.fchmod(file, 0o600)
            self._size = found.st_size
            if self._size and not _ends_in_newline(self._path, self._size):
                self._size += os.write(file, b"\n")  # a power cut left half a line
        except BaseException:
            os.close(file)
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file = file
        _sync_folder(self._path.parent)

    def _prepare(self, size: int) -> None:
        """Begin a new file where the old is full, or somebody (logrotate) has moved it away."""
        try:
            here = os.stat(self._path)
            ours = os.fstat(self._file)
            moved = (here.st_ino, here.st_dev) != (ours.st_ino, ours.st_dev)
        except FileNotFoundError:
            moved = True
        if not moved and (not self._size or self._size + size <= self._limits.file_bytes):
            return
        os.fsync(self._file)
        if not moved:
            for number in range(self._limits.kept - 1, 0, -1):
                older = self._aside(number)
                if older.exists():
                    os.replace(older, self._aside(number + 1))
            os.replace(self._path, self._aside(1))
        self._open()

    def _aside(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def without_secrets(value: Any, depth: int = 0) -> Any:
    """A copy fit for a log: secrets by name or by look masked, long texts and lists cut, six levels deep."""
    if isinstance(value, str):
        text = mask_secrets(value)
        return text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}… ({len(text)} characters)"
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth >= 6:
        return "…"
    if isinstance(value, Mapping):
        kept = {str(name)[:128]: "***" if any(word in str(name).lower() for word in _SECRET_NAMES) and item
                else without_secrets(item, depth + 1) for name, item in list(value.items())[:_ITEMS_MAX]}
        return kept if len(value) <= _ITEMS_MAX else {**kept, "…": f"{len(value)} in all"}
    if isinstance(value, list | tuple | set | frozenset):
        items = [without_secrets(item, depth + 1) for item in list(value)[:_ITEMS_MAX]]
        return items if len(value) <= _ITEMS_MAX else [*items, f"… {len(value)} in all"]
    return without_secrets(f"{type(value).__name__}: {value}", depth)


def _line(entry: dict[str, Any]) -> bytes:
    options = orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
    try:
        line = orjson.dumps(entry, option=options)
    except TypeError:  # a lone surrogate, an integer of more than 64 bits
        line = orjson.dumps(_sayable(entry), option=options)
    if len(line) > MAX_LINE_BYTES:
        line = orjson.dumps(_sayable({**entry, "arguments": f"… {len(line)} bytes"}), option=options)
    return line


def _sayable(value: Any) -> Any:
    """A copy without what JSON cannot say."""
    if isinstance(value, dict):
        return {_sayable(name): _sayable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_sayable(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value if value is None or isinstance(value, bool | float) else str(value)[:_TEXT_MAX]


def _ends_in_newline(path: Path, size: int) -> bool:
    with open(path, "rb") as file:
        file.seek(size - 1)
        return file.read(1) == b"\n"


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
