"""A directory or a server: which one a command works on, and that every data command takes either."""

from pathlib import Path

import numpy as np
import pytest

URL = "grpc://db.example:7700"
COMMANDS = [
    ["query", "-c", "docs", "--vector", "[1,0,0,0]"], ["export", "out.jsonl", "-c", "docs"],
    ["import", "in.npy", "-c", "docs"], ["collection", "list"], ["collection", "describe", "docs"],
    ["collection", "count", "docs"], ["collection", "create", "new", "-d", "3"], ["collection", "optimize", "docs"],
    ["collection", "drop", "docs", "--yes"], ["collection", "verify", "docs"], ["plan", "--check", "-c", "docs"],
    ["key", "create", "ci", "--role", "admin"], ["key", "list"], ["job", "list"], ["doctor"],
]


@pytest.mark.parametrize("argv", COMMANDS, ids=lambda argv: " ".join(argv[:2]))
def test_every_command_works_on_a_server(cli, docs, opened, argv, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.ones((3, 4), np.float32))
    ran = cli(*argv, "--url", URL)
    assert ran.code == 0, ran
    assert [one["path"] for one in opened] == [URL]
    assert "read_only" not in opened[0]


def test_both_flags_are_refused_and_flags_of_a_server_need_one(cli, docs, opened) -> None:
    both = cli("collection", "list", "--url", URL, "--data", "data")
    assert both.code == 2
    assert "exclude each other" in both.err
    for flag in (["--api-key-file", "key"], ["--insecure"], ["--timeout", "3s"]):
        Path("key").write_text("k")
        ran = cli("collection", "list", *flag)
        assert ran.code == 2
        assert f"{flag[0]} is for a server" in ran.err
    assert opened == []


def test_what_is_configured_is_taken_and_the_nearer_source_wins(cli, docs, opened, monkeypatch, tmp_path) -> None:
    (tmp_path / "vecdb.toml").write_text(f"data_dir = 'data'\n[client]\nurl = '{URL}'\n")
    assert "a server goes before a directory" in cli("collection", "list").err
    monkeypatch.setenv("VECDB_DATA_DIR", "data")
    assert "this is the directory data (VECDB_DATA_DIR)" in cli("collection", "list").err
    monkeypatch.setenv("VECDB_URL", "grpc://b:1")
    assert "this is grpc://b:1 (VECDB_URL)" in cli("collection", "list").err
    assert cli("collection", "list", "--data", "data").err == ""
    assert cli("collection", "list", "--url", URL).err == ""
    assert [str(one["path"]) for one in opened] == [URL, "data", "grpc://b:1", "data", URL]
    monkeypatch.delenv("VECDB_DATA_DIR")
    (tmp_path / "vecdb.toml").unlink()
    assert cli("collection", "list").err == ""


def test_how_a_connection_is_made(cli, docs, opened, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VECDB_API_KEY", "from-env")
    cli("collection", "list", "--url", URL)
    (tmp_path / "key").write_text("from-file\n")
    cli("collection", "list", "--url", URL, "--api-key-file", "key", "--ca-file", "ca.pem", "--timeout", "1m30s",
        "--cert-file", "c.pem", "--key-file", "k.pem", "--insecure")
    told = cli("collection", "list", "--url", URL, "--api-key", "shown", "--json")
    assert "--api-key can be read by every user" in told.err
    half = cli("collection", "list", "--url", URL, "--cert-file", "c.pem")
    assert half.code == 2
    assert "needs client.key_file" in half.err
    assert [one["api_key"] for one in opened] == ["from-env", "from-file", "shown"]
    assert cli("collection", "list", "--url", URL, "--consistency", "strong").code == 2
    assert cli("collection", "list", "--url", URL, "--consistency", "eventual").code == 0
    monkeypatch.setenv("VECDB_CLIENT__CONSISTENCY", "session")
    assert cli("collection", "list", "--url", URL).code == 0
    assert [one["consistency"] for one in opened[2:]] == ["linearizable", "eventual", "session"]
    assert opened[1] == {"path": URL, "api_key": "from-file", "ca_file": "ca.pem", "cert_file": "c.pem",
                         "key_file": "k.pem", "insecure": True, "timeout": 90.0,
                         "connect_timeout": 10.0, "consistency": "linearizable"}


def test_an_import_sends_several_batches_and_the_later_row_of_an_id_wins(cli, backend, tmp_path: Path) -> None:
    rows = 400
    vectors = np.arange(rows, dtype=np.float32)[:, None].repeat(3, 1)
    np.save(tmp_path / "v.npy", vectors)
    (tmp_path / "m.jsonl").write_text("\n".join(f'{{"id": {n % 90}, "n": {n}}}' for n in range(rows)))
    told = cli("import", "v.npy", "-c", "a", "--metadata", "m.jsonl", "--metric", "l2", "--batch-size", "7", "--url",
               URL, "--parallel", "5", "--json").json
    assert (told["rows"], told["records"], told["next_row"]) == (rows, 90, rows)
    last = {n % 90: n for n in range(rows)}
    for record in backend.fetch("a", list(range(90))):
        assert record.metadata["n"] == last[record.id] == record.vector[0]


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_refused_batch_is_where_an_import_goes_on_from(cli, docs, backend, monkeypatch, tmp_path, parallel) -> None:
    from vecdb.core.errors import Unavailable

    np.save(tmp_path / "v.npy", np.ones((100, 4), np.float32))
    real = backend.upsert

    def broken(name, batch, **call):
        if 40 in list(batch.ids):
            raise Unavailable("gone")
        return real(name, batch, **call)

    monkeypatch.setattr(backend, "upsert", broken)
    ran = cli("import", "v.npy", "-c", "docs", "--batch-size", "10", "--parallel", str(parallel))
    assert ran.code == 11
    assert "go on with --start-row 40" in ran.err


def test_ctrl_c_during_an_import_ends_it(cli, docs, backend, monkeypatch, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones((100, 4), np.float32))
    real = backend.upsert

    def interrupted(name, batch, **call):
        if 50 in list(batch.ids):
            raise KeyboardInterrupt
        return real(name, batch, **call)

    monkeypatch.setattr(backend, "upsert", interrupted)
    ran = cli("import", "v.npy", "-c", "docs", "--batch-size", "10")
    assert ran.code == 130
    assert "go on with --start-row 50" in ran.err


def test_quickstart_on_a_server_drops_what_it_made(cli, backend, opened, monkeypatch) -> None:
    import dataclasses

    from vecdb import datasets
    whole = datasets.load_wordnet()
    part = dataclasses.replace(whole, ids=whole.ids[:1500], vectors=whole.vectors[:1500],
                               metadata=whole.metadata[:1500])
    monkeypatch.setattr(datasets, "load_wordnet", lambda: part)
    told = cli("quickstart", "--queries", "2", "--url", URL, "--json").json
    assert "resident_bytes" not in told
    assert backend.list_collections() == []
    ran = cli("quickstart", "--queries", "2", "--url", URL, "--keep")
    assert f"--url {URL} --like" in ran.out
    assert backend.list_collections() == ["wordnet"]
    assert {one["path"] for one in opened} == {URL}
