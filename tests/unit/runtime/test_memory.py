"""Memory and disk as this process may use them, container limits included."""

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vecdb.core.errors import StorageError
from vecdb.ports.clock import Clock
from vecdb.runtime.clock import SystemClock
from vecdb.runtime.memory import disk, memory, resident_bytes

GIB = 1 << 30


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A pretended root with 64 GiB of memory, 48 of it free."""
    put(tmp_path, "proc/meminfo", f"MemTotal: {64 << 20} kB\nMemFree: {1 << 20} kB\nMemAvailable: {48 << 20} kB\n")
    put(tmp_path, "proc/self/statm", "1000 250 10 1 0 100 0\n")
    return tmp_path


def put(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_without_a_group_the_machine_counts(machine: Path) -> None:
    found = memory(machine)
    assert (found.total_bytes, found.available_bytes) == (64 * GIB, 48 * GIB)
    assert found.resident_bytes % 250 == 0


def test_version_2_limits_along_the_path(machine: Path) -> None:
    put(machine, "proc/self/cgroup", "0::/pod/app\n")
    put(machine, "sys/fs/cgroup/pod/memory.max", f"{8 * GIB}\n")
    put(machine, "sys/fs/cgroup/pod/memory.current", f"{5 * GIB}\n")
    put(machine, "sys/fs/cgroup/pod/memory.stat", f"anon 1\ninactive_file {2 * GIB}\n")
    put(machine, "sys/fs/cgroup/pod/app/memory.max", "max\n")
    put(machine, "sys/fs/cgroup/pod/app/memory.current", "1\n")
    found = memory(machine)
    assert (found.total_bytes, found.available_bytes) == (8 * GIB, 5 * GIB)


def test_version_1_limits_and_its_way_of_saying_none(machine: Path) -> None:
    put(machine, "proc/self/cgroup", "4:cpu,cpuacct:/x\n7:memory:/docker/abc\n")
    put(machine, "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "9223372036854771712\n")
    assert memory(machine).total_bytes == 64 * GIB
    put(machine, "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{2 * GIB}\n")
    put(machine, "sys/fs/cgroup/memory/memory.usage_in_bytes", f"{3 * GIB}\n")
    found = memory(machine)
    assert (found.total_bytes, found.available_bytes) == (2 * GIB, 0)


def test_real_figures_are_sane() -> None:
    found = memory()
    assert 0 <= found.available_bytes <= found.total_bytes
    assert found.resident_bytes < found.total_bytes
    before = resident_bytes()
    block = np.ones(64 << 20, np.uint8)
    assert resident_bytes() - before > 32 << 20
    assert block[-1] == 1


def test_disk(tmp_path: Path) -> None:
    found = disk(tmp_path)
    assert 0 < found.free_bytes <= found.total_bytes
    with pytest.raises(StorageError):
        disk(tmp_path / "none")


def test_the_clock_is_a_clock() -> None:
    clock: Clock = SystemClock()
    first = clock.monotonic()
    clock.sleep(0.001)
    assert clock.monotonic() > first
    assert clock.wall() > 1.7e9


FAULTS = """
import resource, sys
from vecdb.runtime.memory import reuse_freed
if sys.argv[1] == "keep":
    assert reuse_freed()
def batch():
    held = [bytearray(4 << 20) for _ in range(6)]
    for one in held:
        one[::4096] = b"x" * len(one[::4096])
for _ in range(3):
    batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="mallopt, which this holds to its effect, is "
                    "glibc's; with another C library vecdb leaves allocation as it is")
def test_what_is_freed_is_used_again() -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    # of memory that is mapped anew each page is a fault; huge pages may hide some of it
    assert faults("keep") < 1_000 <= faults("leave")
