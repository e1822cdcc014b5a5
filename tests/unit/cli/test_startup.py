"""What a start may not import: the cost that a person waits for before every command.

Times are not asserted; what is loaded decides them and does not depend on the machine.
"""

import subprocess
import sys

import pytest

HEAVY = {"numpy", "numba", "llvmlite", "pyarrow", "h5py", "pandas", "rocksdict", "grpc", "uvloop"}


def loaded(*argv: str, cwd) -> set[str]:
    """The top-level modules in memory after one command."""
    code = ("import sys\nfrom vecdb.cli import main\n"
            f"main({list(argv)!r})\nprint('modules', *sorted({{m.partition('.')[0] for m in sys.modules}}))")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=cwd)
    return set(ran.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("argv", [["--help"], ["version"], ["import", "--help"], ["nonsense"]])
def test_what_touches_no_data_imports_no_numbers(argv, tmp_path) -> None:
    assert not loaded(*argv, cwd=tmp_path) & HEAVY


def test_plan_imports_no_engine(tmp_path) -> None:
    assert not loaded("plan", "--records", "1e9", "--dim", "768", cwd=tmp_path) & HEAVY


def test_refusals_and_doctor_start_without_compiling(tmp_path) -> None:
    assert not loaded("collection", "list", cwd=tmp_path) & {"numba", "llvmlite", "pyarrow", "h5py", "pandas"}
    assert not loaded("import", "none.npy", "-c", "a", cwd=tmp_path) & {"numba", "llvmlite", "pyarrow", "h5py"}
    assert not loaded("doctor", cwd=tmp_path) & {"numba", "llvmlite", "pyarrow", "h5py", "pandas"}


def run(*argv: str, cwd, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "vecdb.cli", *argv], capture_output=True, text=True, timeout=60,
                          cwd=cwd, check=False, **options)


def test_as_a_process_codes_and_streams(tmp_path) -> None:
    ran = run("plan", "--records", "1e6", "--dim", "128", "--json", cwd=tmp_path)
    assert ran.returncode == 0
    assert ran.stdout.startswith("{")
    assert ran.stderr == ""
    ran = run("collection", "count", "x", cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (3, "")
    ran = run("plan", "--dim", "x", cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "\x1b" not in ran.stderr


def test_a_reader_that_went_away_ends_it_quietly(tmp_path) -> None:
    ran = subprocess.run(f"{sys.executable} -m vecdb.cli plan --records 1e6 --dim 8 | true; echo ${{PIPESTATUS[0]}}",
                         shell=True, executable="/bin/bash", capture_output=True, text=True, timeout=60, cwd=tmp_path,
                         check=True)
    assert ran.stderr == ""
    assert ran.stdout.strip() in ("141", "0")
