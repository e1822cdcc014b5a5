"""``connect``: what a target may be, and what importing costs."""

import doctest
import importlib
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import vecdb
from tests.memory_backend import MemoryBackend
from vecdb.client import collection, database
from vecdb.client.connect import connect, directory
from vecdb.core.errors import InvalidArgument, VecdbError

HEAVY = ("numba", "llvmlite", "pyarrow", "pandas", "rocksdict", "typer", "rich", "pydantic", "structlog", "h5py")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list:
    """A composition root that opens the double, and what it was asked."""
    calls: list = []

    def open_embedded(path: str, *, threads: int = 0, read_only: bool = False) -> MemoryBackend:
        calls.append((path, threads, read_only))
        return MemoryBackend()

    app = types.ModuleType("vecdb.app")
    app.open_embedded = open_embedded  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vecdb.app", app)
    return calls


def test_paths_and_urls(opened: list, tmp_path: Path) -> None:
    for target in (str(tmp_path), tmp_path, f"file://{tmp_path}", f"file:{tmp_path}", f"file://localhost{tmp_path}"):
        with connect(target, threads=3) as db:
            assert db.list_collections() == []
            assert str(tmp_path) in repr(db)
    assert opened == [(str(tmp_path), 3, False)] * 5
    assert directory("file:///a%20b") == "/a b"
    assert directory("./data") == "./data"
    assert directory("c:/data") == "c:/data"


@pytest.mark.parametrize(("target", "kind"), [
    ("grpc://", InvalidArgument), ("GRPCS://a b", InvalidArgument), ("https://x", InvalidArgument),
    ("grpc://key@host", InvalidArgument), ("grpc://host:0", InvalidArgument), ("grpc://host:x", InvalidArgument),
    ("grpc://host/path", InvalidArgument), ("grpc://a,,b", InvalidArgument), ("grpc://h?x=1", InvalidArgument),
    ("s3://bucket", InvalidArgument), ("", InvalidArgument), ("a\0b", InvalidArgument), (None, InvalidArgument),
    (3, InvalidArgument), (b"data", InvalidArgument), ("file://host/x", InvalidArgument), ("file:", InvalidArgument),
    ("file:///x?y", InvalidArgument), ("file://[x", InvalidArgument), (["x"], InvalidArgument),
])
def test_targets_refused(opened: list, target: object, kind: type[VecdbError]) -> None:
    with pytest.raises(kind) as info:
        connect(target)  # type: ignore[arg-type]
    assert type(info.value) is kind
    assert opened == []


def test_options(opened: list, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="did you mean 'read_only'"):
        connect(tmp_path, readonly=True)
    with pytest.raises(InvalidArgument, match="api_key"):
        connect(tmp_path, api_key=3)  # type: ignore[arg-type]
    assert opened == []
    assert connect(tmp_path, api_key="not looked at", read_only=True).closed is False


def test_names_of_keys_are_at_hand_without_an_engine_or_a_network() -> None:
    program = """
import sys, vecdb
key = vecdb.Grant(vecdb.Role.WRITE, ["docs"])
assert key.role is vecdb.Role["WRITE"] and vecdb.Key and vecdb.NewKey
assert {"Grant", "Key", "NewKey", "Role"} <= set(dir(vecdb))
print(*{"numba", "grpc", "google.protobuf", "vecdb.kernels", "vecdb.client"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_an_unclosed_database_is_closed_at_exit() -> None:
    program = """
import sys, types
from tests.memory_backend import MemoryBackend
class Loud(MemoryBackend):
    def close(self):
        super().close()
        print("closed", len(self._tables))
app = sys.modules["vecdb.app"] = types.ModuleType("vecdb.app")
app.open_embedded = lambda path: Loud()
import vecdb
def script():
    vecdb.connect("x").create_collection("docs", dim=2)
script()
closed = vecdb.connect("y")
closed.close()
print("end")
"""
    root = Path(vecdb.__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120,
                          cwd=root)
    assert done.stdout.split("\n") == ["closed 0", "end", "closed 1", ""]


def test_public_names() -> None:
    for name in vecdb.__all__:
        assert getattr(vecdb, name) is not None
        assert name in dir(vecdb)
    with pytest.raises(AttributeError, match="nothing"):
        _ = vecdb.nothing  # type: ignore[attr-defined]
    assert vecdb.errors.VecdbError is vecdb.VecdbError
    stub = Path(vecdb.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    exported = json.loads("[" + stub.split("__all__ = [")[1].split("]")[0].strip().rstrip(",") + "]")
    assert exported == vecdb.__all__
    assert Path(vecdb.__file__).with_name("py.typed").exists()


@pytest.mark.parametrize(("code", "also"), [
    ("import vecdb; vecdb.__version__", ("numpy",)),
    ("import vecdb; vecdb.connect, vecdb.F, vecdb.errors, vecdb.Hit, vecdb.Database", ("vecdb.kernels", "vecdb.app")),
])
def test_importing_is_light(code: str, also: tuple[str, ...]) -> None:
    program = f"{code}; import sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    loaded = set(json.loads(done.stdout))
    assert "vecdb" in loaded
    assert loaded.isdisjoint((*HEAVY, *also))


def test_using_the_facade_is_light_too() -> None:
    program = """
import json, sys
from tests.memory_backend import MemoryBackend
from vecdb import Database, F
docs = Database(MemoryBackend()).create_collection("docs", dim=2)
docs.upsert(ids=[1], vectors=[[1, 2]], metadata=[{"a": 1}])
docs.upsert([("x", [1, 2])])
assert docs.query([1, 2], filter=F.a == 1, include=["metadata"]).ids == [1]
assert [r.id for r in docs.scan()] == [1, "x"]
print(json.dumps(sorted(sys.modules)))
"""
    root = Path(vecdb.__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120,
                          cwd=root)
    assert set(json.loads(done.stdout)).isdisjoint((*HEAVY, "vecdb.kernels"))


EXAMPLES = [test for module in (collection, database) for test in doctest.DocTestFinder().find(module) if test.examples]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name.removeprefix("vecdb.client."))
def test_examples_in_docstrings(example: doctest.DocTest) -> None:
    example.globs.update(db=vecdb.Database(MemoryBackend()), np=np)
    shown: list[str] = []
    result = doctest.DocTestRunner().run(example, out=shown.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(shown)


def test_every_public_method_has_a_docstring() -> None:
    for name in ("collection", "database", "results"):
        module = importlib.import_module(f"vecdb.client.{name}")
        for kind in (item for item in vars(module).values() if isinstance(item, type) and
                     item.__module__ == module.__name__):
            assert kind.__doc__
            for method, value in vars(kind).items():
                if not method.startswith("_") and callable(value):
                    assert value.__doc__, f"{kind.__name__}.{method}"
