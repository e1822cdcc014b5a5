"""Keys, jobs, digests and doctor of a server, over the double."""

import time

import pytest

from vecdb.core.access import Grant, Role

URL = ["--url", "grpc://db.example:7700"]


def test_a_key_is_made_and_its_secret_alone_is_on_stdout(cli, backend) -> None:
    ran = cli("key", "create", "ci", "--role", "write", "--collection", "docs", "--collection", "logs-*", "--ttl",
              "90d", "--grant", "read:a,b", "--lock-out", *URL)
    (key,) = backend.list_keys()
    assert (ran.code, ran.out) == (0, f"vdb_{key.id}_secret\n")
    assert "write on docs, logs-*; read on a, b" in ran.err
    assert key.expires_s == pytest.approx(time.time() + 90 * 86_400, abs=60)
    told = cli("key", "create", "other", *URL, "--json", "--lock-out").json
    assert told["secret"].startswith("vdb_")
    assert told["key"]["grants"] == [{"role": "read", "collections": []}]
    assert told["key"]["expires_s"] == 0


@pytest.mark.parametrize("argv", [
    ["--role", "king"], ["--ttl", "soon"], ["--ttl", "0"], ["--grant", "docs"], ["--grant", "read:"],
    ["--collection", "no good name"],
])
def test_keys_that_are_refused(cli, backend, argv) -> None:
    assert cli("key", "create", "ci", *argv, *URL).code == 2
    assert backend.list_keys() == []


def test_a_first_key_that_would_lock_everybody_out_is_refused(cli, backend, monkeypatch) -> None:
    for argv in ([], ["--role", "write"], ["--role", "admin", "--collection", "docs"]):
        ran = cli("key", "create", "ci", *argv, *URL)
        assert ran.code == 2
        assert "--role admin first" in ran.err
    ran = cli("key", "create", "root", "--role", "admin", "--ttl", "1h", *URL)
    assert ran.code == 2
    assert "without --ttl first" in ran.err
    assert backend.list_keys() == []
    assert cli("key", "create", "root", "--role", "admin", *URL).code == 0
    assert cli("key", "create", "ci", *URL).code == 0
    assert cli("key", "create", "guest", "--role", "admin", "--ttl", "1h", *URL).code == 0
    backend.keys.clear()
    monkeypatch.setenv("VECDB_API_KEY", "of-the-settings")
    assert cli("key", "create", "ci", *URL).code == 0
    monkeypatch.delenv("VECDB_API_KEY")
    backend.keys.clear()
    assert cli("key", "create", "ci").code == 0  # a directory's owner can always make another


def test_list_rotate_revoke(cli, backend) -> None:
    assert "no keys" in cli("key", "list", *URL).out
    id = cli("key", "create", "ci", *URL, "--json", "--lock-out").json["key"]["id"]
    assert cli("key", "rotate", id, "--overlap", "1d", *URL).out == f"vdb_{id}_new86400\n"
    listed = cli("key", "list", *URL)
    assert "secret" not in listed.out + listed.err
    assert [word in listed.out for word in (id, "ci", "good", "read on all", "never")] == [True] * 5
    assert cli("key", "revoke", id, *URL, "--json").json == {"revoked": id}
    assert cli("key", "list", *URL, "--json").json["keys"][0]["state"] == "revoked"
    assert cli("key", "revoke", "bbbbbbbbbbbb", *URL).code == 3


def test_jobs_and_digests(cli, docs, backend) -> None:
    assert "5 of 10" in cli("job", "list", *URL).out
    assert cli("job", "list", "-c", "docs", "--json").json["jobs"][0]["kind"] == "merge"
    assert "50 records, digest aa, as written" in cli("collection", "verify", "docs", *URL).out
    backend.equal = False
    ran = cli("collection", "verify", "docs", *URL, "--json")
    assert (ran.code, ran.json["equal"]) == (6, False)
    found = cli("doctor", *URL, "--json")
    assert found.code == 6
    assert cli("doctor", "--quick", *URL).code == 0


def checks(ran) -> dict[str, dict]:
    return {one["name"]: one for one in ran.json["checks"]}


def test_doctor_of_a_server(cli, docs, backend) -> None:
    found = checks(cli("doctor", *URL, "--json"))
    assert {"server", "clocks", "keys", "collection docs"} <= found.keys()
    assert not {"disk", "fsync", "ports", "settings"} & found.keys()
    backend.about |= {"version": "9.9.9", "wall_s": time.time() - 3600}
    found = checks(cli("doctor", *URL, "--json"))
    assert (found["server"]["state"], found["clocks"]["state"]) == ("warn", "warn")
    assert "install" in found["server"]["advice"]
    assert "-36" in found["clocks"]["found"]
    key, _ = backend.create_key("ci", [Grant(Role.READ)])
    assert "none of an admin" in checks(cli("doctor", *URL, "--json"))["keys"]["found"]
    root, _ = backend.create_key("root", [Grant(Role.ADMIN)], 3600)
    assert "root end within two weeks" in checks(cli("doctor", *URL, "--json"))["keys"]["found"]
    backend.revoke_key(root.id)
    backend.revoke_key(key.id)
    assert "0 good, 2 revoked" in checks(cli("doctor", *URL, "--json"))["keys"]["found"]


def test_doctor_of_a_server_that_does_not_answer(cli, docs, backend, monkeypatch) -> None:
    from vecdb.core.errors import Unauthenticated, Unavailable

    for error, code, advice in ((Unavailable("nobody there"), 11, "vecdb serve"),
                                (Unauthenticated("no key"), 10, "VECDB_API_KEY")):
        def fail(error=error) -> None:
            raise error

        monkeypatch.setattr(backend, "server", fail)
        ran = cli("doctor", *URL, "--json")
        assert ran.code == code
        assert checks(ran)["server"]["state"] == "fail"
        assert advice in checks(ran)["server"]["advice"]


def test_doctor_tells_of_settings_that_are_wrong_and_looks_on(cli, monkeypatch, tmp_path) -> None:
    (tmp_path / "vecdb.toml").write_text("[limits]\nmemory_byte = 3\n")
    ran = cli("doctor", "--json")
    assert ran.code == 2
    assert "limits.memory_bytes" in checks(ran)["settings"]["found"]
    assert checks(ran)["versions"]["state"] == "ok"
    (tmp_path / "vecdb.toml").write_text("[server]\nhost = '0.0.0.0'\ngrpc_port = 0\nhttp_port = 0\n")
    found = checks(cli("doctor", "--json"))
    assert found["settings"]["state"] == "warn"
    assert "without API keys" in found["settings"]["advice"]
    assert found["fsync"]["state"] in ("ok", "warn")
    (tmp_path / "vecdb.toml").write_text("[tls]\ncert_file = 'none.pem'\nkey_file = 'none.pem'\n")
    assert cli("doctor", "--json").code == 2


def test_doctor_checks_what_serve_would_start_with(cli, tmp_path) -> None:
    (tmp_path / "node.toml").write_text("data_dir = 'there'\n[server]\nhost = '0.0.0.0'\ngrpc_port = 0\n"
                                        "http_port = 0\n")
    found = checks(cli("doctor", "--config", "node.toml", "--json"))
    assert "without API keys" in found["settings"]["advice"]
    assert found["settings"]["found"] == "from node.toml"
    assert "there" in found["database"]["found"]
    found = checks(cli("doctor", "--config", "node.toml", "--set", "server.host=127.0.0.1", "--set",
                       "security.admin_key=quite-a-long-secret", "--data", "data", "--json"))
    assert "--set server.host" in found["settings"]["found"]
    assert "without API keys" not in found["settings"]["advice"]
    assert "stands on the command line" in found["settings"]["advice"]
    assert cli("doctor", "--config", "none.toml", "--json").code == 2
    assert cli("doctor", "--set", "limits.rat=1", "--json").code == 2
    assert "write --set" in cli("doctor", "--set", "limits.rate").err


def test_doctor_warns_when_others_can_read_what_keys_guard(cli, docs, tmp_path) -> None:
    folder = tmp_path / "data"
    (folder / "x").touch()
    folder.chmod(0o755)
    assert "permissions" not in checks(cli("doctor", "--json")), "there is no key"
    assert cli("key", "create", "root", "--role", "admin").code == 0
    found = checks(cli("doctor", "--json"))["permissions"]
    assert (found["state"], found["advice"]) == ("warn", "chmod o-rwx data")
    assert "0755" in found["found"]
    folder.chmod(0o750)
    assert checks(cli("doctor", "--json"))["permissions"]["state"] == "ok"


def test_doctor_names_a_port_in_use(cli, monkeypatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("VECDB_SERVER__GRPC_PORT", str(taken.getsockname()[1]))
        found = checks(cli("doctor", "--json"))["ports"]
    assert found["state"] == "warn"
    assert "is in use by another process" in found["found"]


@pytest.mark.parametrize(("days", "state", "code"), [(-1, "fail", 4), (5, "warn", 0), (400, "ok", 0)])
def test_doctor_tells_when_the_certificate_ends(cli, monkeypatch, tmp_path, days: int, state: str, code: int) -> None:
    from datetime import UTC, datetime, timedelta

    trustme = pytest.importorskip("trustme")
    now = datetime.now(UTC)
    made = trustme.CA().issue_cert("localhost", not_before=now - timedelta(days=9),
                                   not_after=now + timedelta(days=days))
    made.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    made.private_key_pem.write_to_path(tmp_path / "key.pem")
    monkeypatch.setenv("VECDB_TLS__CERT_FILE", "cert.pem")
    monkeypatch.setenv("VECDB_TLS__KEY_FILE", "key.pem")
    ran = cli("doctor", "--json")
    assert checks(ran)["certificate"]["state"] == state
    assert ran.code == code
