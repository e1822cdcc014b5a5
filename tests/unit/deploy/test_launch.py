"""What the image starts: which kernels it takes, and what its health check says."""

import importlib.util
import os
import platform
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

LAUNCH = Path(__file__).parents[3] / "deploy" / "image" / "launch.py"
HASWELL = "fpu sse sse2 pni ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt xsave avx f16c abm bmi1 avx2 bmi2"
CASCADE_LAKE = HASWELL + " avx512f avx512dq avx512cd avx512bw avx512vl avx512_vnni"


def _loaded() -> Any:
    spec = importlib.util.spec_from_file_location("launch", LAUNCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


launch = _loaded()


def _cpu(flags: str) -> str:
    return f"processor\t: 0\nmodel name\t: one\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {flags}\n"


@pytest.mark.parametrize(("flags", "targets"), [
    (CASCADE_LAKE, ["avx512", "avx2"]), (HASWELL, ["avx2"]), (CASCADE_LAKE.replace(" avx512_vnni", ""), ["avx2"]),
    (HASWELL.replace(" fma", ""), []), ("", [])])
def test_targets_of_a_processor(flags: str, targets: list[str]) -> None:
    assert launch.usable(_cpu(flags)) == targets


def test_a_processor_without_flags_has_no_target() -> None:
    assert launch.usable("processor\t: 0\nFeatures\t: fp asimd\n") == []


def test_the_largest_target_is_taken_unless_another_is_asked_for() -> None:
    auto = launch.variables("auto", _cpu(CASCADE_LAKE), "/c")
    assert (auto["NUMBA_CPU_NAME"], auto["NUMBA_CACHE_DIR"]) == ("x86-64-v4", "/c/avx512")
    assert "+avx512vnni" in auto["NUMBA_CPU_FEATURES"].split(",")
    smaller = launch.variables("avx2", _cpu(CASCADE_LAKE), "/c")
    assert (smaller["NUMBA_CPU_NAME"], smaller["NUMBA_CACHE_DIR"]) == ("x86-64-v3", "/c/avx2")
    assert "avx512" not in smaller["NUMBA_CPU_FEATURES"]


@pytest.mark.parametrize(("asked", "flags"), [("native", CASCADE_LAKE), ("auto", "")])
def test_native_says_nothing_to_numba_but_where_to_cache(asked: str, flags: str) -> None:
    assert launch.variables(asked, _cpu(flags), "/c") == {"NUMBA_CACHE_DIR": "/c/native"}


def test_a_target_that_the_processor_lacks_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"avx512.*has avx2;"):
        launch.variables("avx512", _cpu(HASWELL), "/c")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="asks this processor's own LLVM about "
                    "names of x86 features, which it knows on x86 alone; other processors get no targets")
def test_features_are_those_that_the_kernels_ask_for() -> None:
    """A name that LLVM does not know would only be warned of, and the byte kernels would be slow ones."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    known = llvm.get_host_cpu_features()
    assert set(launch.TARGETS["avx512"][1]) <= set(known)


def test_a_read_only_cache_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "cache"
    there.mkdir()
    (there / "kernel").write_text("code")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write everywhere
    assert launch.writable(str(there), str(tmp_path / "copy")) == str(tmp_path / "copy")
    assert (tmp_path / "copy" / "kernel").read_text() == "code"


def test_a_cache_that_is_not_there_is_made_or_replaced(tmp_path: Path) -> None:
    assert launch.writable(str(tmp_path / "new" / "one"), "other") == str(tmp_path / "new" / "one")
    (tmp_path / "file").write_text("")
    assert launch.writable(str(tmp_path / "file" / "one"), "other") == "other"


class _Node(BaseHTTPRequestHandler):
    code = 200

    def do_GET(self) -> None:
        self.send_response(self.code if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Not on the tests' output."""


def _check(port: int, **more: str) -> int:
    told = {"VECDB_SERVER__HOST": "0.0.0.0", "VECDB_SERVER__HTTP_PORT": str(port), **more}
    return subprocess.run([sys.executable, "-I", "-S", str(LAUNCH), "--healthy"], env=told, timeout=30).returncode


@pytest.mark.parametrize(("code", "expected"), [(200, 0), (503, 1)])
def test_health_is_what_the_http_face_says(monkeypatch: pytest.MonkeyPatch, code: int, expected: int) -> None:
    monkeypatch.setattr(_Node, "code", code)
    with HTTPServer(("127.0.0.1", 0), _Node) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert _check(server.server_port) == expected
        server.shutdown()
    assert _check(server.server_port) == 1


def test_a_node_without_an_http_face_is_not_asked() -> None:
    assert _check(-1) == 0
