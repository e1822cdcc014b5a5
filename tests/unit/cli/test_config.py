"""Settings: the order of sources, and that nothing misspelt is taken for a setting."""

from pathlib import Path

import pytest

from vecdb.config import load_settings
from vecdb.core.errors import InvalidArgument


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("VECDB_DATA_DIR", "VECDB_CONFIG", "VECDB_ENGINE__THREADS"):
        monkeypatch.delenv(name, raising=False)


def test_defaults_then_file_then_environment(tmp_path: Path, monkeypatch) -> None:
    assert load_settings().data_dir == Path("./data")
    (tmp_path / "vecdb.toml").write_text('data_dir = "here"\n[engine]\nthreads = 3\nseal_records = 100\n')
    settings = load_settings()
    assert (settings.data_dir, settings.engine.threads, settings.engine.seal_records) == (Path("here"), 3, 100)
    monkeypatch.setenv("VECDB_ENGINE__THREADS", "5")
    settings = load_settings()
    assert (settings.engine.threads, settings.engine.seal_records) == (5, 100)
    (tmp_path / "other.toml").write_text('data_dir = "there"\n')
    monkeypatch.setenv("VECDB_CONFIG", str(tmp_path / "other.toml"))
    assert load_settings().data_dir == Path("there")


@pytest.mark.parametrize(("text", "named"), [
    ("data_dri = 'x'", "data_dri"),
    ("[engine]\nthread = 3", "engine.thread"),
    ("[engine]\nthreads = -1", "engine.threads"),
    ("[engine]\nthreads = 'many'", "engine.threads"),
    ("engine = 3", "engine"),
    ("not toml", "not TOML"),
])
def test_a_file_that_is_wrong_says_where(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "vecdb.toml").write_text(text)
    with pytest.raises(InvalidArgument) as caught:
        load_settings()
    assert named in caught.value.message
    assert "vecdb.toml" in caught.value.message


@pytest.mark.parametrize("name", ["VECDB_DATADIR", "VECDB_ENGINE__THREAD", "VECDB_ENGINES__THREADS"])
def test_a_variable_that_sets_nothing_is_refused_with_the_nearest(monkeypatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(InvalidArgument, match=f"{name} is no setting; did you mean VECDB_"):
        load_settings()


def test_a_variable_of_the_wrong_kind(monkeypatch) -> None:
    monkeypatch.setenv("VECDB_ENGINE__THREADS", "all")
    with pytest.raises(InvalidArgument, match=r"engine\.threads"):
        load_settings()


def test_a_missing_file_that_was_named(monkeypatch) -> None:
    monkeypatch.setenv("VECDB_CONFIG", "none.toml")
    with pytest.raises(InvalidArgument, match=r"none\.toml cannot be read"):
        load_settings()
