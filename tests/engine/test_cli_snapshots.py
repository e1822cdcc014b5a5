"""``vecdb snapshot`` over a directory, and the settings of places."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

import vecdb
from vecdb.app import repositories
from vecdb.cli import main
from vecdb.config import BackupSettings, load
from vecdb.core.errors import InvalidArgument


def run(cwd: Path, *argv: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(one) for one in argv])
    return code, out.getvalue(), err.getvalue()


def told(cwd: Path, *argv: object) -> Any:
    code, out, err = run(cwd, *argv, "--json")
    assert code == 0, err
    return orjson.loads(out)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    with vecdb.connect(tmp_path / "data", background=False) as db:
        for name, count in (("docs", 300), ("more", 20)):
            rows = np.random.default_rng(count).standard_normal((count, 8)).astype(np.float32)
            db.create_collection(name, dim=8).upsert(list(range(count)), rows)
    return tmp_path


def test_from_the_first_to_the_last(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECDB_BACKUP__URL", f"file://{home}/place")
    made = told(home, "snapshot", "create", "one", "--data", "data")
    assert made["snapshot"]["collections"][0]["records"] == 300
    code, out, err = run(home, "snapshot", "create", "one", "--data", "data", "--dry-run")
    assert (code, "exists already" in err, out) == (4, True, "")
    second = told(home, "snapshot", "create", "two", "-c", "docs", "--data", "data")["snapshot"]
    assert [one["name"] for one in second["collections"]] == ["docs"]
    assert second["added_bytes"] < made["snapshot"]["added_bytes"]
    listed = told(home, "snapshot", "list")
    assert [one["name"] for one in listed["snapshots"]] == ["one", "two"]
    assert told(home, "snapshot", "show", "one")["collections"][1]["name"] == "more"
    assert told(home, "snapshot", "verify", "one", "--data", "data")["problems"] == []
    planned = told(home, "snapshot", "restore", "one", "--data", "new", "--dry-run")
    assert [one["target"] for one in planned["plan"]["steps"]] == ["docs", "more"]
    assert told(home, "collection", "list", "--data", "new")["collections"] == []
    code, _, err = run(home, "snapshot", "restore", "one", "--data", "new")
    assert code == 2
    assert "--yes" in err
    done = told(home, "snapshot", "restore", "one", "--data", "new", "--yes")["collections"]
    assert [(one["name"], one["records"]) for one in done] == [("docs", 300), ("more", 20)]
    told(home, "snapshot", "restore", "one", "-c", "docs=again", "--data", "new", "--yes")
    assert told(home, "collection", "verify", "again", "--data", "new")
    code, _, err = run(home, "snapshot", "restore", "one", "-c", "docs", "--data", "new", "--yes")
    assert code == 4
    assert "docs" in err
    removed = told(home, "snapshot", "delete", "one", "--yes", "--data", "data")
    assert removed["removed"]["objects"] > 0
    assert [one["name"] for one in told(home, "snapshot", "list")["snapshots"]] == ["two"]
    code, out, _ = run(home, "snapshot", "verify", "two", "--data", "data")
    assert code == 0
    assert "two is whole: 300 records" in out


def test_damage_is_told_by_the_exit_code(home: Path) -> None:
    at = ("--at", f"file://{home}/place")
    told(home, "snapshot", "create", "one", *at, "--data", "data")
    for path in (home / "place" / "objects").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1])
    code, _, err = run(home, "snapshot", "verify", "one", *at, "--data", "data")
    assert code == 6
    assert "docs" in err
    (home / "place" / "snapshots" / "one.json").write_bytes(b"{}")
    code, out, err = run(home, "snapshot", "list", *at, "--json")
    assert code == 6
    assert orjson.loads(out)["damaged"][0]["name"] == "one"
    assert run(home, "snapshot", "show", "two", *at)[0] == 3
    assert run(home, "snapshot", "show", "two")[0] == 2


def test_a_node_uses_no_other_places_than_its_settings_say(tmp_path: Path) -> None:
    opened = repositories(BackupSettings(urls=(f"file://{tmp_path}/a",)))
    opened(f"file://{tmp_path}/a/b", create=True)
    opened(f"file://{tmp_path}/a", create=True)
    for url in (f"file://{tmp_path}/ab", f"file://{tmp_path}", "s3://bucket"):
        with pytest.raises(InvalidArgument, match="place"):
            opened(url, create=True)


def test_the_secret_is_read_from_a_file_and_shown_to_nobody(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("very-hidden\n")
    (tmp_path / "vecdb.toml").write_text(f'[backup]\ns3_secret_access_key_file = "{tmp_path}/secret"\nurls = '
                                         '["s3://a/b"]\n')
    loaded = load(tmp_path / "vecdb.toml")
    assert loaded.settings.backup.s3_secret_access_key.get_secret_value() == "very-hidden"
    assert "very-hidden" not in repr(loaded)
