"""The command line against a real node: started by ``vecdb serve``, asked by ``--url``, stopped by a signal."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import pytest

from tests.engine.test_cli import Ran, process, vec

COUNT, DIM = 2_000, 16


@contextlib.contextmanager
def served(home: Path, *argv: object) -> Iterator[tuple[subprocess.Popen, dict]]:
    """A node on ``home/data``, and what it said when it was ready."""
    ready = home / "ready.json"
    node = subprocess.Popen([sys.executable, "-m", "vecdb.cli", "serve", "--port", "0", "--http-port", "0",
                             "--ready-file", str(ready), "--set", "server.drain_s=5", *map(str, argv)], cwd=home,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not ready.exists():
            assert node.poll() is None, node.communicate()[1]
            assert time.monotonic() < deadline, "the node did not become ready"
            time.sleep(0.05)
        yield node, orjson.loads(ready.read_bytes())
    finally:
        if node.poll() is None:
            node.send_signal(signal.SIGTERM)
        try:
            node.communicate(timeout=30)
        finally:
            node.kill()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A directory with a file of vectors, and the URL of a node that serves it."""
    home = tmp_path_factory.mktemp("served")
    rng = np.random.default_rng(7)
    np.save(home / "v.npy", rng.normal(size=(COUNT, DIM)).astype(np.float32))
    (home / "m.jsonl").write_text("\n".join(f'{{"id": {n}, "year": {n % 50}}}' for n in range(COUNT)))
    with served(home) as (_, ready):
        ran = vec("import", "v.npy", "-c", "docs", "--metadata", "m.jsonl", "--metric", "l2", "--batch-size", "300",
                  "--url", ready["url"], "--json", cwd=home)
        assert ran.returncode == 0, ran.stderr
        told = orjson.loads(ran.stdout)
        assert (told["inserted"], told["records"]) == (COUNT, COUNT)
        yield home, ready["url"]


def answer(ran: Ran) -> dict:
    assert ran.returncode == 0, ran.stderr
    return orjson.loads(ran.stdout)


def test_a_server_answers_as_a_directory_does(node, tmp_path: Path) -> None:
    home, url = node
    assert answer(vec("export", "out.jsonl", "-c", "docs", "--url", url, "--json", cwd=home))["records"] == COUNT
    copied = vec("import", "out.jsonl", "-c", "docs", "--data", tmp_path / "copy", "--json", cwd=home)
    assert answer(copied)["records"] == COUNT
    for argv in (["query", "-c", "docs", "--like", "7", "-k", "5", "--exact", "--filter", "year < 20"],
                 ["collection", "count", "docs", "--filter", "year == 3"], ["collection", "list", "--count"]):
        there = answer(vec(*argv, "--url", url, "--json", cwd=home))
        here = answer(vec(*argv, "--data", tmp_path / "copy", "--json", cwd=home))
        for one in (there, here):
            one.pop("seconds", None)
        assert there == here
    digests = [answer(vec("collection", "verify", "docs", *place, "--json", cwd=home))
               for place in (["--url", url], ["--data", str(tmp_path / "copy")])]
    assert digests[0]["digest"] == digests[1]["digest"]
    assert digests[0]["equal"]


def test_errors_keep_their_kinds_over_the_wire(node) -> None:
    home, url = node
    for argv, code in ((["collection", "count", "nobody"], 3), (["collection", "create", "docs", "-d", "4"], 4),
                       (["query", "-c", "docs", "--vector", "[1,2]"], 2),
                       (["key", "revoke", "aaaaaaaaaaaa"], 3), (["key", "create", "ci"], 2)):
        ran = vec(*argv, "--url", url, cwd=home)
        assert ran.returncode == code, ran
        assert "Traceback" not in ran.stderr
    gone = vec("collection", "list", "--url", "grpc://127.0.0.1:9", "--timeout", "1s", cwd=home)
    assert gone.returncode in (7, 11), gone
    locked = vec("collection", "list", "--data", "data", cwd=home)  # the node has it
    assert locked.returncode == 4
    assert "ask the server with --url" in locked.stderr


def test_doctor_jobs_and_completion(node, monkeypatch: pytest.MonkeyPatch) -> None:
    home, url = node
    told = answer(vec("doctor", "--url", url, "--json", cwd=home))
    found = {one["name"]: one["state"] for one in told["checks"]}
    assert (found["server"], found["clocks"], found["collection docs"]) == ("ok", "ok", "ok")
    assert "jobs" in answer(vec("job", "list", "--url", url, "--json", cwd=home))
    monkeypatch.chdir(home)
    from types import SimpleNamespace

    from vecdb.cli.completing import collections

    assert collections(SimpleNamespace(params={"url": url}), "d") == ["docs"]
    assert collections(SimpleNamespace(params={"data": "data"}), "d") == ["docs"]  # beside the node that has it


def test_a_second_node_is_refused(node) -> None:
    home, url = node
    ran = process("serve", "--port", "0", "--http-port", "0", cwd=home)
    assert ran.returncode == 4
    assert "in use by" in ran.stderr
    number = url.rpartition(":")[2]
    ran = process("serve", "--data", "other", "--port", number, cwd=home)
    assert ran.returncode == 4
    assert f"port {number} of 127.0.0.1 is in use" in ran.stderr
    assert not (home / "other").exists()


def test_keys_made_offline_let_in_over_tls(tmp_path: Path) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "key.pem").chmod(0o600)
    for name, role in (("root", "admin"), ("reader", "read")):
        made = vec("key", "create", name, "--role", role, "--data", "data", cwd=tmp_path)
        assert made.returncode == 0, made.stderr
        (tmp_path / name).write_text(made.stdout)
    with served(tmp_path, "--set", "tls.cert_file=cert.pem", "--set", "tls.key_file=key.pem") as (node, ready):
        at = ["--url", ready["url"], "--ca-file", "ca.pem"]
        assert ready["url"].startswith("grpcs://")
        assert vec("collection", "list", *at, cwd=tmp_path).returncode == 10
        root, reader = (["--api-key-file", name] for name in ("root", "reader"))
        made = vec("collection", "create", "docs", "-d", "3", *at, *root, cwd=tmp_path)
        assert made.returncode == 0, made.stderr
        assert answer(vec("collection", "list", *at, *reader, "--json", cwd=tmp_path))["collections"][0]["dim"] == 3
        assert vec("collection", "drop", "docs", "--yes", *at, *reader, cwd=tmp_path).returncode == 10
        keys = answer(vec("key", "list", *at, *root, "--json", cwd=tmp_path))["keys"]
        assert [(key["name"], key["state"]) for key in keys] == [("root", "good"), ("reader", "good")]
        assert vec("key", "revoke", keys[1]["id"], *at, *root, cwd=tmp_path).returncode == 0
        assert vec("collection", "list", *at, *reader, cwd=tmp_path).returncode == 10
        node.send_signal(signal.SIGTERM)
        _, err = node.communicate(timeout=30)
        assert node.returncode == 0, err
        events = [orjson.loads(line)["event"] for line in err.splitlines()]  # the log has stderr to itself
        assert events[-1] == "stopped"
        assert "serving" in events
        assert not (tmp_path / "ready.json").exists()
    listed = answer(vec("key", "list", "--data", "data", "--json", cwd=tmp_path))["keys"]
    assert [key["state"] for key in listed] == ["good", "revoked"]
    audited = [orjson.loads(line) for line in (tmp_path / "data" / "audit.jsonl").read_bytes().splitlines()]
    assert any("RevokeKey" in str(line) for line in audited), "by default it is beside the data"
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
