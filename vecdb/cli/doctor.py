"""``vecdb doctor``: is this machine, this installation and this database in order?

Every check says what it found and, where something is amiss, what it costs and what to do.
"""

import os
import platform
import resource
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vecdb.cli import exits
from vecdb.cli import options as o
from vecdb.cli.output import Output, count, size

if TYPE_CHECKING:
    from vecdb.client.collection import Collection

_PACKAGES = ("vecdb", "numpy", "numba", "llvmlite", "rocksdict", "pyroaring", "orjson", "typer", "rich")
_OPTIONAL = ("pyarrow", "pandas", "h5py")
_LOW_DISK_BYTES = 1 << 30
_FEW_FILES = 4_096


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; ``state`` is ok, warn or fail."""

    name: str
    state: str
    found: str
    advice: str = ""
    exit_code: int = exits.OK


def doctor(data: o.Data = None, as_json: o.Json = False) -> None:
    """Check versions, processor, kernels, memory, disk, and a database if there is one."""
    out = Output(as_json)
    from vecdb.cli.session import data_directory

    directory = data_directory(data)
    checks = [_versions(), _optional(), _processor(), _kernel_cache(), _huge_pages(), _memory(), _files(),
              _disk(directory), *_database(directory, asked=data is not None)]
    if as_json:
        out.emit({"ok": all(c.state != "fail" for c in checks), "checks": [asdict(c) for c in checks]})
    else:
        out.table("", ["", "check", "found"], [[c.state, c.name, c.found + (f"\n→ {c.advice}" if c.advice else "")]
                                               for c in checks], left=(0, 1, 2))
    worst = next((c.exit_code for c in checks if c.state == "fail"), exits.OK)
    if worst:
        raise typer.Exit(worst)


def installed(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return distribution_version(package)
    except PackageNotFoundError:
        return None


def _versions() -> Check:
    found = {name: installed(name) for name in _PACKAGES}
    missing = [name for name, number in found.items() if number is None]
    text = f"Python {platform.python_version()}, " + ", ".join(f"{n} {v}" for n, v in found.items() if v)
    if missing:
        return Check("versions", "fail", text, f"not installed: {', '.join(missing)}", exits.UNSUPPORTED)
    return Check("versions", "ok", text)


def _optional() -> Check:
    found = {name: installed(name) for name in _OPTIONAL}
    text = ", ".join(f"{name} {number or 'absent'}" for name, number in found.items())
    advice = "" if all(found.values()) else "Parquet needs pyarrow, HDF5 needs h5py; other formats need neither"
    return Check("file libraries", "ok" if all(found.values()) else "warn", text, advice)


def _processor() -> Check:
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


def _kernel_cache() -> Check:
    from vecdb.config import kernel_cache_directories

    found = [(folder, sum(1 for _ in folder.rglob("*.nbc"))) for folder in kernel_cache_directories()]
    warm = sum(number for _, number in found)
    text = ", ".join(f"{count(number)} compiled kernels in {folder}" for folder, number in found)
    if not warm:
        return Check("kernels", "warn", text or "no cache", "the first query compiles for about half a minute; "
                     "python -m vecdb.ann.warmup does it now")
    return Check("kernels", "ok", text)


def _huge_pages() -> Check:
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    try:
        text = path.read_text().strip()
    except OSError:
        return Check("huge pages", "warn", "unknown", "without transparent huge pages large graphs are walked slower")
    chosen = text.partition("[")[2].partition("]")[0]
    if chosen == "never":
        return Check("huge pages", "warn", text, f"echo madvise > {path} makes walks of large graphs faster")
    return Check("huge pages", "ok", text)


def _memory() -> Check:
    values = {}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            values[name] = int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return Check("memory", "warn", "unknown")
    text = f"{size(values.get('MemAvailable'))} available of {size(values.get('MemTotal'))}"
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        return Check("memory", "warn", f"{text}; address space limited to {size(limit)}",
                     "segments reserve address space beyond what they fill; ulimit -v unlimited")
    return Check("memory", "ok", text)


def _files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{count(soft)} open files, {count(hard) if hard != resource.RLIM_INFINITY else 'unlimited'} at most"
    if soft < _FEW_FILES:
        return Check("file limit", "warn", text, f"many collections need more; ulimit -n {_FEW_FILES} or above")
    return Check("file limit", "ok", text)


def _disk(directory: Path) -> Check:
    place = directory
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    text = f"{size(free)} free for {directory}"
    if not os.access(place, os.W_OK):
        return Check("disk", "fail", f"{place} may not be written", "choose another with --data", exits.STORAGE)
    if free < _LOW_DISK_BYTES:
        return Check("disk", "warn", text, "writes are refused when the disk is full; reads go on")
    return Check("disk", "ok", text)


def _database(directory: Path, *, asked: bool) -> list[Check]:
    """Open the database and look at every collection; opening verifies the checksums of sealed files."""
    if not directory.is_dir() or not any(directory.iterdir()):
        if asked:
            return [Check("database", "fail", f"there is none at {directory}", exit_code=exits.NOT_FOUND)]
        return [Check("database", "ok", f"none yet at {directory}")]
    from vecdb.cli.session import open_database
    from vecdb.core.errors import VecdbError

    try:
        with open_database(directory, verify=True) as database:
            names = database.list_collections()
            return [Check("database", "ok", f"{directory}: {count(len(names))} collections"),
                    *[_collection(name, database.collection(name)) for name in names]]
    except VecdbError as error:
        return [Check("database", "fail", error.message, exit_code=exits.exit_code(error))]


def _collection(name: str, collection: "Collection") -> Check:
    from vecdb.core.errors import VecdbError

    try:
        found = collection.describe()
        damage = _damage(found.details)
        if damage:
            return Check(f"collection {name}", "fail", "; ".join(damage), "records it names must be imported again",
                         exits.DATA_LOSS)
        return Check(f"collection {name}", "ok", f"{count(found.records)} records")
    except VecdbError as error:
        return Check(f"collection {name}", "fail", error.message, exit_code=exits.exit_code(error))


def _damage(details: Any) -> list[str]:
    """Whatever a description says, at any depth, under a key that speaks of damage."""
    found: list[str] = []
    if isinstance(details, dict):
        for key, value in details.items():
            if "damage" in str(key) and value:
                found += _words(value)
            else:
                found += _damage(value)
    elif isinstance(details, list | tuple):
        for value in details:
            found += _damage(value)
    return found


def _words(value: Any) -> list[str]:
    """What a description says of damage, as lines."""
    if isinstance(value, dict):
        lost = value.get("lost_ids") or []
        told = [f"lost: {', '.join(map(str, lost[:20]))}{' ...' if len(lost) > 20 else ''}"] if lost else []
        return [str(one) for one in value.get("messages", [])] + told
    if isinstance(value, list | tuple):
        return [words for one in value for words in _words(one)]
    return [str(value)]


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
