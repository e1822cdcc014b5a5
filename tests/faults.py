"""Ways to hurt a database: flipped and torn bytes, full and read-only disks, processes killed at work."""

import contextlib
import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[1]
REQUIRED = os.environ.get("VECDB_TEST_REQUIRE_ENGINE") == "1"
"""Whether a test that lacks what this machine should have (an engine of containers, the rights it needs, a compiler)
fails instead of being skipped."""


def flip_byte(path: Path, offset: int, mask: int = 0x08) -> None:
    """Flip the bits of ``mask`` in the byte at ``offset``; negative offsets count from the end."""
    with path.open("r+b") as file:
        file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ mask]))


def zero_bytes(path: Path, offset: int, count: int) -> None:
    """Overwrite with zeros, as a lost page reads."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(count))


def truncate(path: Path, size: int) -> None:
    """Cut the file to ``size`` bytes; a negative size cuts so many off its end."""
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)


@contextlib.contextmanager
def unreadable(path: Path, offset: int) -> Iterator[None]:
    """Let every ``preadv`` of ``path`` that covers the byte at ``offset`` fail, as a bad sector does."""
    inode, real = path.stat().st_ino, os.preadv

    def preadv(handle: int, buffers: list[memoryview], at: int) -> int:
        if os.fstat(handle).st_ino == inode and at <= offset < at + sum(len(one) for one in buffers):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(handle, buffers, at)

    os.preadv = preadv  # type: ignore[assignment]
    try:
        yield
    finally:
        os.preadv = real


def can_mount() -> bool:
    """Whether this process may mount a small file system (root outside a container, mostly)."""
    try:
        with tempfile.TemporaryDirectory() as folder, small_filesystem(Path(folder), 1 << 20):
            return True
    except PermissionError:
        return False


@contextlib.contextmanager
def small_filesystem(path: Path, size_bytes: int) -> Iterator[Path]:
    """A tmpfs of ``size_bytes`` mounted on ``path`` (made if missing); :class:`PermissionError` where not allowed."""
    path.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path))
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def remount(path: Path, *, read_only: bool) -> None:
    """Turn a mounted file system read-only, or back."""
    _mount("-o", f"remount,{'ro' if read_only else 'rw'}", str(path))


def _mount(*arguments: str) -> None:
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise PermissionError("there is no mount command") from error
    if done.returncode:
        raise PermissionError(done.stderr.strip())


def fill(folder: Path, leave_bytes: int = 0) -> Path:
    """Fill the file system of ``folder`` up to ``leave_bytes`` with one file, which is returned: delete it to free."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 16, 1 << 12):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
        if leave_bytes:
            file.truncate(max(0, file.tell() - leave_bytes))
    return ballast


def run_python(code: str, *arguments: object, timeout_s: float = 120) -> str:
    """Run ``code`` in a fresh interpreter that sees this repository; return what it printed."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
                          timeout=timeout_s)
    if done.returncode:
        raise AssertionError(f"the child ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def kill_during(code: str, *arguments: object, until: Callable[[list[str]], bool]) -> list[str]:
    """Run ``code`` in a fresh interpreter and kill it (SIGKILL) once ``until`` is true of the lines it printed.

    Returns every whole line it had printed, also those printed between the decision and the kill: each is a promise
    the child made.  The child must flush what it prints and must not end by itself.
    """
    child = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE,
                             text=True)
    assert child.stdout is not None
    lines: list[str] = []
    try:
        for line in child.stdout:
            lines.append(line.rstrip("\n"))
            if until(lines):
                break
        else:
            raise AssertionError(f"the child ended by itself with {child.wait()} after {len(lines)} lines")
    finally:
        child.kill()
        rest = child.stdout.read()
        child.wait()
        child.stdout.close()
    return lines + rest.split("\n")[:-1]


def is_out_of_space(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def lacking(why: str) -> NoReturn:
    """End a test that cannot run here."""
    if REQUIRED:
        pytest.fail(f"it is required that this test runs: {why}")
    pytest.skip(why)


def needs(there: Callable[[], object], reason: str) -> pytest.MarkDecorator:
    """Tests that are skipped unless something is ``there``; where they are required they run, and meet its absence."""
    return pytest.mark.skipif(not REQUIRED and not there(), reason=reason)


needs_mount = needs(can_mount, "this process may not mount, and the test needs a real disk that fills or turns "
                    "read-only under it: a small tmpfs of its own. As root it runs")
