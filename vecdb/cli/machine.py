"""What ``vecdb doctor`` looks at on this machine: the installation, the processor, memory, disks, clocks."""

import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as distribution_version
from pathlib import Path

from vecdb.cli import exits
from vecdb.cli.output import count, size

_PACKAGES = ("vecdb", "numpy", "numba", "llvmlite", "rocksdict", "pyroaring", "orjson", "grpcio", "protobuf", "uvloop",
             "uvicorn", "pydantic", "typer", "rich")
_OPTIONAL = ("pyarrow", "pandas", "h5py")
_LOW_DISK_BYTES = 1 << 30
_LITTLE_MEMORY_BYTES = 256 << 20
_FEW_FILES = 4_096
_FSYNC_S = 0.25
_SLOW_FSYNC_S = 0.02
_CLOCK_S = 0.02
_STEP_S = 0.5
_EARLIEST_S = 1_735_689_600.0
"""The first of January 2025."""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; ``state`` is ok, warn or fail, and ``advice`` says what to do."""

    name: str
    state: str
    found: str
    advice: str = ""
    exit_code: int = exits.OK


def machine() -> list[Check]:
    """Everything that is looked at wherever the database is."""
    return [versions(), optional(), processor(), kernel_cache(), huge_pages(), memory(), files(), clock()]


def installed(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return distribution_version(package)
    except PackageNotFoundError:
        return None


def versions() -> Check:
    found = {name: installed(name) for name in _PACKAGES}
    missing = [name for name, number in found.items() if number is None]
    text = f"Python {platform.python_version()}, " + ", ".join(f"{n} {v}" for n, v in found.items() if v)
    if missing:
        return Check("versions", "fail", text, f"not installed: {', '.join(missing)}", exits.UNSUPPORTED)
    return Check("versions", "ok", text)


def optional() -> Check:
    found = {name: installed(name) for name in _OPTIONAL}
    text = ", ".join(f"{name} {number or 'absent'}" for name, number in found.items())
    advice = "" if all(found.values()) else "Parquet needs pyarrow, HDF5 needs h5py; other formats need neither"
    return Check("file libraries", "ok" if all(found.values()) else "warn", text, advice)


def processor() -> Check:
    flags = _cpu_flags()
    wanted = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_vpopcntdq", "avx_vnni", "neon",
              "asimd", "asimddp")
    have = [flag for flag in wanted if flag in flags]
    text = f"{platform.machine()}, {os.cpu_count()} cores, {len(os.sched_getaffinity(0))} usable; " + (
        ", ".join(have) or "no vector extension known here")
    if platform.machine() == "x86_64" and "avx2" not in have:
        return Check("processor", "warn", text, "without AVX2 kernels run on 128-bit vectors, at about half the speed")
    return Check("processor", "ok", text)


def _cpu_flags() -> set[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return set(value.split())
    except OSError:
        return set()
    return set()


def kernel_cache() -> Check:
    from vecdb.config import kernel_cache_directories

    found = [(folder, sum(1 for _ in folder.rglob("*.nbc"))) for folder in kernel_cache_directories()]
    warm = sum(number for _, number in found)
    text = ", ".join(f"{count(number)} compiled kernels in {folder}" for folder, number in found)
    if not warm:
        return Check("kernels", "warn", text or "no cache", "the first start of a server, or the first query of a "
                     "directory, compiles them, which takes a minute or more; vecdb warmup does it now")
    return Check("kernels", "ok", text)


def huge_pages() -> Check:
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    try:
        text = path.read_text().strip()
    except OSError:
        return Check("huge pages", "warn", "unknown", "without transparent huge pages large graphs are walked slower")
    chosen = text.partition("[")[2].partition("]")[0]
    if chosen == "never":
        return Check("huge pages", "warn", text, f"echo madvise > {path} makes walks of large graphs faster")
    return Check("huge pages", "ok", text)


def memory() -> Check:
    """What the process may use: of the machine, of its control group, of its address space."""
    from vecdb.runtime.memory import memory as measure

    found = measure()
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    text = f"{size(found.available_bytes)} available of {size(found.total_bytes)}"
    if found.total_bytes < machine * 0.99:
        text += f", the limit of a control group on a machine of {size(machine)}"
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        return Check("memory", "warn", f"{text}; address space limited to {size(limit)}",
                     "segments reserve address space beyond what they fill; ulimit -v unlimited")
    if found.available_bytes < _LITTLE_MEMORY_BYTES:
        return Check("memory", "warn", text, "writes are refused before memory runs out; give it more, or fewer "
                     "collections (vecdb plan says what one needs)")
    return Check("memory", "ok", text)


def files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{count(soft)} open files, {count(hard) if hard != resource.RLIM_INFINITY else 'unlimited'} at most"
    if soft < _FEW_FILES:
        return Check("file limit", "warn", text, f"many collections need more; ulimit -n {_FEW_FILES} or above")
    return Check("file limit", "ok", text)


def disk(directory: Path) -> list[Check]:
    """Room, permission, and how long a write takes to be durable, in a file that never gets a name."""
    place = directory
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    text = f"{size(free)} free for {directory}"
    if not os.access(place, os.W_OK):
        return [Check("disk", "fail", f"{place} may not be written", "choose another with --data, or mend its "
                      "permissions", exits.STORAGE)]
    room = Check("disk", "warn", text, "writes are refused when the disk is full; reads go on") \
        if free < _LOW_DISK_BYTES else Check("disk", "ok", text)
    return [room, _fsync(directory)] if directory.is_dir() else [room]


def _fsync(directory: Path) -> Check:
    times: list[float] = []
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            begin = time.perf_counter()
            while len(times) < 64 and time.perf_counter() - begin < _FSYNC_S:
                file.write(b"\0" * 512)
                file.flush()
                before = time.perf_counter()
                os.fsync(file.fileno())
                times.append(time.perf_counter() - before)
    except OSError as error:
        return Check("fsync", "fail", f"{directory}: {error.strerror}", "no write would be durable here", exits.STORAGE)
    middle = sorted(times)[len(times) // 2]
    text = f"{middle * 1e3:.2f} ms, {count(round(1 / max(middle, 1e-9)))} a second one after the other"
    if middle > _SLOW_FSYNC_S:
        return Check("fsync", "warn", text, "a write waits for one; writes at the same time share it, so send batches, "
                     "or several at once")
    return Check("fsync", "ok", text)


def clock() -> Check:
    """Keys expire, certificates end and logs are read by the wall clock; deadlines go by the monotonic one."""
    first, wall = time.monotonic(), time.time()
    time.sleep(_CLOCK_S)
    spent, moved = time.monotonic() - first, time.time() - wall
    text = f"{datetime.fromtimestamp(wall, UTC):%Y-%m-%d %H:%M:%S} UTC"
    if spent < _CLOCK_S * 0.5:
        return Check("clock", "fail", f"the monotonic clock moved {spent * 1e3:.0f} ms in {_CLOCK_S * 1e3:.0f} ms",
                     "deadlines cannot be kept on this machine", exits.PRECONDITION)
    if wall < _EARLIEST_S:
        return Check("clock", "warn", text, "this is before vecdb was made: set the clock (chrony, ntpd)")
    if abs(moved - spent) > _STEP_S:
        return Check("clock", "warn", f"{text}; it was moved by {moved - spent:+.3f} s just now", "let chrony or ntpd "
                     "slew it: API keys and certificates go by it")
    return Check("clock", "ok", text)


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
