"""``vecdb serve``: what is checked before a node starts, what is told when it answers; the node itself is a double."""

import socket
from pathlib import Path
from typing import Any

import orjson
import pytest

import vecdb.serving
from vecdb.cli import output, serve
from vecdb.core.errors import DatabaseLocked, Unavailable


@pytest.fixture
def started(monkeypatch) -> list[Any]:
    """The settings of every node that was started."""
    seen: list[Any] = []

    def run_node(settings, on_ready=None, on_step=None) -> int:
        seen.append(settings)
        on_step("opening")
        on_ready({"grpc": "127.0.0.1:1234", "grpc_port": 1234, "http": "127.0.0.1:1235", "http_port": 1235})
        seen.append(Path("ready.json").exists() and orjson.loads(Path("ready.json").read_bytes()))
        return 0

    monkeypatch.setattr(vecdb.serving, "run_node", run_node)
    return seen


@pytest.fixture
def terminal(monkeypatch) -> None:
    """Somebody watches stderr."""
    for module in (output, serve):
        monkeypatch.setattr(module, "watched", lambda: True)


FREE = ["--port", "0", "--http-port", "0"]


def test_check_prints_settings_with_their_sources_and_no_secrets(cli, started, monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "vecdb.toml").write_text("[limits]\nrate = 9\n[security]\nadmin_key = 'quite-a-long-secret'\n")
    monkeypatch.setenv("VECDB_LOG__LEVEL", "debug")
    ran = cli("serve", "--check", "--port", "17", "--data", "there", "--set", "limits.burst=20")
    assert ran.code == 0
    lines = {line.split()[0]: line.split()[1:] for line in ran.out.splitlines() if line.strip()}
    assert lines["server.grpc_port"] == ["17", "--port"]
    assert lines["data_dir"] == ["there", "--data"]
    assert lines["limits.rate"] == ["9.0", "vecdb.toml"]
    assert lines["limits.burst"] == ["20.0", "--set", "limits.burst"]
    assert lines["log.level"] == ["debug", "VECDB_LOG__LEVEL"]
    assert lines["security.admin_key"] == ["********", "vecdb.toml"]
    assert lines["server.host"] == ["127.0.0.1", "default"]
    told = cli("serve", "--check", "--json").json
    assert told["settings"]["security"]["admin_key"] == "********"
    assert told["origins"]["limits.rate"] == {"layer": "file", "where": "vecdb.toml"}
    assert told["warnings"] == []
    toml = cli("serve", "--check", "--toml")
    (tmp_path / "vecdb.toml").write_text(toml.out)
    assert cli("serve", "--check", "--json").json["settings"]["limits"]["rate"] == 9
    assert "quite-a-long" not in ran.out + ran.err + str(told) + toml.out
    assert started == []
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(("argv", "message"), [
    (["--set", "limits.rat=1"], "limits.rat is no setting; did you mean limits.rate?"),
    (["--set", "limits.rate"], "write --set limits.rate=100"),
    (["--port", "70000"], "server.grpc_port: Input should be less than or equal to 65535 (from --port)"),
    (["--set", "tls.cert_file=x.pem"], "tls.cert_file: needs tls.key_file too (from --set tls.cert_file)"),
    (["--set", "tls.cert_file=x.pem", "--set", "tls.key_file=x.pem"], "x.pem"),
    (["--config", "none.toml"], "none.toml cannot be read"),
    (["--set", "security.admin_key=short"], "settings.security.admin_key"),
    (["--host", "no.such.host.invalid"], "settings.server.host"),
])
def test_what_cannot_be_started_with_is_refused(cli, started, argv, message) -> None:
    ran = cli("serve", *([] if "--port" in argv else FREE), *argv)
    assert ran.code == 2
    assert message in ran.err
    assert started == []


def test_what_is_open_to_all_is_told_loudly(cli, started, terminal) -> None:
    told = cli("serve", "--check", "--host", "0.0.0.0", "--json").json["warnings"]
    assert any("without API keys" in one for one in told)
    assert any("without TLS" in one for one in told)
    told = cli("serve", "--check", "--set", "security.require_keys=always", "--json").json["warnings"]
    assert any("nobody gets in" in one for one in told)
    told = cli("serve", "--check", "--set", "security.admin_key=quite-a-long-secret", "--json").json["warnings"]
    assert any("security.admin_key stands on the command line" in one for one in told)
    ran = cli("serve", "--host", "0.0.0.0", *FREE)
    assert (ran.code, len(started)) == (0, 2)
    assert "vecdb: warning: listening on 0.0.0.0 without API keys" in ran.err


def test_certificates_are_tried(cli, started, tmp_path: Path) -> None:
    trustme = pytest.importorskip("trustme")
    one, other = (trustme.CA().issue_cert("localhost") for _ in range(2))
    one.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    one.private_key_pem.write_to_path(tmp_path / "key.pem")
    other.private_key_pem.write_to_path(tmp_path / "other.pem")
    tls = ["--set", "tls.cert_file=cert.pem", "--set"]
    assert cli("serve", "--check", *tls, "tls.key_file=key.pem", "--json").code == 0
    wrong = cli("serve", "--check", *tls, "tls.key_file=other.pem")
    assert wrong.code == 2
    assert "settings.tls." in wrong.err


def test_a_port_in_use_is_named(cli, started) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        ran = cli("serve", "--port", number, "--http-port", "0")
        assert ran.code == 4
        assert f"port {number} of 127.0.0.1 is in use by another process (server.grpc_port); --port takes" in ran.err
        assert "--http-port takes" in cli("serve", "--port", "0", "--http-port", number).err
    assert started == []


def test_where_nobody_watches_stderr_is_the_logs(cli, started) -> None:
    ran = cli("serve", "--host", "0.0.0.0", *FREE)
    assert (ran.code, ran.err, len(started)) == (0, "", 2), "the node logs what is open to all"
    ran = cli("serve", "--set", "security.admin_key=quite-a-long-secret", *FREE)
    (line,) = map(orjson.loads, ran.err.splitlines())
    assert (line["event"], line["level"]) == ("settings", "warning")
    assert "security.admin_key stands on the command line" in line["warning"]
    assert "quite-a-long" not in ran.err


def test_when_it_answers_people_and_programs_are_told(cli, started, terminal, tmp_path: Path) -> None:
    ran = cli("serve", *FREE, "--ready-file", "ready.json", "--data", "there", "--processes", "2")
    assert (ran.code, ran.out) == (0, "")
    assert "gRPC 127.0.0.1:1234 (without TLS), HTTP 127.0.0.1:1235" in ran.err
    assert "opening ..." in ran.err
    settings, ready = started
    assert (settings.server.processes, settings.data_dir) == (2, Path("there"))
    assert (ready["url"], ready["http_port"], ready["event"]) == ("grpc://127.0.0.1:1234", 1235, "ready")
    assert not (tmp_path / "ready.json").exists()
    as_json = cli("serve", *FREE, "--json")
    assert as_json.json["grpc_port"] == 1234
    assert as_json.err == ""


@pytest.mark.parametrize(("error", "code"), [
    (DatabaseLocked("in use by process 7"), 4), (Unavailable("cannot listen"), 11),
])
def test_what_keeps_a_node_from_starting_is_told_by_kind(cli, monkeypatch, error, code) -> None:
    def run_node(settings, on_ready=None, on_step=None) -> int:
        raise error

    monkeypatch.setattr(vecdb.serving, "run_node", run_node)
    ran = cli("serve", *FREE, "--json")
    assert (ran.code, ran.error["message"]) == (code, error.message)


def test_a_cluster_is_shown_and_its_port_is_tried(cli, started, tmp_path: Path) -> None:
    nodes = "n1=127.0.0.1:{port},n2=127.0.0.1:1"
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen(1)
        nodes = nodes.format(port=held.getsockname()[1])
        given = ["--set", "cluster.name=prod", "--set", "server.node_id=n1", "--set", f"cluster.nodes={nodes}"]
        toml = cli("serve", "--check", "--toml", *given).out
        assert f"cluster.nodes {nodes}" in " ".join(cli("serve", "--check", *given).out.split())
        refused = cli("serve", *FREE, *given)
        assert refused.code != 0
        assert "in use by another process (cluster.nodes)" in refused.err
    (tmp_path / "vecdb.toml").write_text(toml)
    assert cli("serve", "--check", "--json").json["settings"]["cluster"]["nodes"]["n2"] == "127.0.0.1:1"
    assert cli("serve", *FREE).code == 0
    assert started[0].cluster.name == "prod"


def test_a_peer_listener_that_others_do_not_reach_is_told(cli) -> None:
    ran = cli("serve", "--check", "--json", "--set", "cluster.name=prod", "--set", "server.node_id=n1", "--set",
              "cluster.nodes=n1=10.0.0.1:7702", "--set", "cluster.insecure=true")
    assert "only this machine reaches it" in ran.json["warnings"][0]
