"""The kernel cache: found again by another process, never stale, indifferent to damage."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from vecdb.kernels._jit import fingerprint, inline, kernel

PROGRAM = """
import sys
import numpy as np
from vecdb.kernels._jit import Compiled, inline, kernel

def make(factor):
    @inline
    def helper(x):
        return x * factor
    @kernel("test.cached." + str(factor))
    def entry(x):
        return helper(x) + 1
    return entry

for factor in (2, 3):
    entry = make(factor)
    print(entry(np.int64(5)), sum(entry.stats.cache_hits.values()), Compiled.count)
"""


def run(folder: Path, program: str) -> list[str]:
    script = folder / "program.py"
    script.write_text(program, encoding="utf-8")
    root = str(Path(__file__).resolve().parents[3])
    env = os.environ | {"NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": root}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=120,
                          check=True)
    return done.stdout.split("\n")[:-1]


def test_kernels_made_by_a_factory_are_found_by_the_next_process(tmp_path):
    assert run(tmp_path, PROGRAM) == ["11 0 1", "16 0 2"]
    assert run(tmp_path, PROGRAM) == ["11 1 0", "16 1 0"]


def test_damaged_cache_files_cost_a_compilation_only(tmp_path):
    run(tmp_path, PROGRAM)
    files = sorted((tmp_path / "cache").rglob("*.nb*"))
    assert files
    for number, path in enumerate(files):
        data = path.read_bytes()
        path.write_bytes(data[:len(data) // 2] if number % 2 else b"\x00" * len(data))
    assert run(tmp_path, PROGRAM) == ["11 0 1", "16 0 2"]
    assert run(tmp_path, PROGRAM) == ["11 1 0", "16 1 0"]


def test_the_fingerprint_sees_helpers_constants_and_cells():
    def make(constant, cell):
        @inline
        def helper(x):
            return x + cell

        def entry(x):
            return helper(x) * 3 if constant else helper(x)

        return entry

    same = fingerprint(make(1, 2))
    assert same == fingerprint(make(1, 2))
    assert same != fingerprint(make(1, 3))
    assert same != fingerprint(make(0, 2))


def test_two_entries_of_one_factory_stay_apart():
    def make(name, sign):
        @kernel(f"test.apart.{name}")
        def entry(x):
            return sign * x

        return entry

    plus, minus = make("plus", 1), make("minus", -1)
    assert (plus(np.int64(4)), minus(np.int64(4))) == (4, -4)
