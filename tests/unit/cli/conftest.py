"""The command line over the in-memory double, in this process."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

import vecdb
from tests.memory_backend import MemoryBackend
from vecdb.cli import main
from vecdb.client.database import Database


class Lasting(MemoryBackend):
    """Stays open between commands, as a directory does."""

    def close(self) -> None:
        """The next command opens it again."""


@dataclass
class Ran:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return orjson.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        return orjson.loads(self.err.splitlines()[-1])["error"]


@pytest.fixture
def backend() -> Lasting:
    return Lasting()


@pytest.fixture
def opened() -> list[dict[str, Any]]:
    """The options of every opening."""
    return []


@pytest.fixture
def cli(backend, opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    """``cli("collection", "list")`` in an empty directory with a database at ``./data``."""
    monkeypatch.chdir(tmp_path)
    for name in ("VECDB_DATA_DIR", "VECDB_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "data").mkdir()

    def connect(path, **options):
        opened.append({"path": Path(path), **options})
        return Database(backend)

    monkeypatch.setattr(vecdb, "connect", connect)

    def run(*argv: object) -> Ran:
        capfd.readouterr()
        code = main([str(one) for one in argv])
        said = capfd.readouterr()
        return Ran(code, said.out, said.err)

    return run


@pytest.fixture
def docs(backend, cli):
    """Fifty records of four dimensions, l2; record i is at (i, 0, 0, 0)."""
    made = Database(backend).create_collection("docs", dim=4, metric="l2")
    vectors = np.zeros((50, 4), np.float32)
    vectors[:, 0] = np.arange(50)
    made.upsert(ids=[*range(49), "last"], vectors=vectors,
                metadata=[{"n": n, "even": n % 2 == 0, "text": f"record {n}"} for n in range(50)])
    return made
