"""``vecdb cluster init`` and ``join``: what is written, and what is refused before anything is."""

import socket
import stat
from pathlib import Path

import pytest

from vecdb.config import load
from vecdb.rpc.peer_certificates import dns_names, issue

THREE = "n1=10.0.0.1:7702,n2=10.0.0.2:7702,n3=db3.example:7702"
TOKEN = "vdj_" + "a" * 12 + "_" + "b" * 52


@pytest.fixture
def free() -> int:
    """A peer port that is free with the two below it."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = int(one.getsockname()[1])
    return port if port > 1_100 else 20_002


def tree(place: Path) -> set[str]:
    return {str(one.relative_to(place)) for one in place.rglob("*") if one.is_file()}


def test_init_writes_folders_that_serve(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = cli("cluster", "init", "--name", "prod", "--nodes", THREE, "--zone", "n1=east", "--host", "n3=db.example",
              "--set", "limits.rate=9", "--yes")
    assert ran.code == 0
    assert [line for line in ran.out.splitlines() if line.startswith("  cd prod/")] == [
        *(f"  cd prod/n{n} && vecdb serve" for n in (1, 2, 3)), "  cd prod/n1 && vecdb cluster status"]
    assert "keep prod/authority/ca.key" in ran.err
    place = tmp_path / "prod"
    assert tree(place) == {"authority/ca.key", "authority/ca.pem"} | {
        f"n{n}/{file}" for n in (1, 2, 3) for file in ("vecdb.toml", "ca.pem", f"n{n}.pem", f"n{n}.key", "admin.key")}
    assert {stat.S_IMODE((place / one).stat().st_mode) for one in ("n1/n1.key", "n2/admin.key", "authority/ca.key")} \
        == {0o600}
    assert len({(place / f"n{n}" / "admin.key").read_text() for n in (1, 2, 3)}) == 1
    assert {"n3.prod.vecdb.internal", "db.example", "db3.example"} <= set(
        dns_names((place / "n3" / "n3.pem").read_bytes()))
    for n in (1, 2, 3):
        monkeypatch.chdir(place / f"n{n}")
        settings = load().settings
        assert (settings.server.node_id, settings.server.grpc_port, settings.limits.rate) == (f"n{n}", 7700, 9)
        assert sorted(settings.cluster.nodes) == ["n1", "n2", "n3"]
        assert len(settings.security.admin_key.get_secret_value()) > 40
        assert settings.client.url == "grpcs://10.0.0.1:7700,10.0.0.2:7700,db.example:7700"
        assert cli("serve", "--check", "--json").code == 0
    monkeypatch.chdir(place / "n1")
    assert load().settings.cluster.zone == "east"


def test_init_on_one_machine_asks_for_no_keys(cli, free: int, tmp_path: Path) -> None:
    ran = cli("cluster", "init", "--name", "dev", "--nodes", f"n1=127.0.0.1:{free}", "--out", "here", "--json", "--yes")
    assert ran.code == 0
    assert [step["action"] for step in ran.json["plan"]["steps"]] == ["authority", "write"]
    assert "three survive" in ran.json["plan"]["notes"][0]
    assert tree(tmp_path / "here" / "n1") == {"vecdb.toml", "ca.pem", "n1.pem", "n1.key"}
    assert ran.json["next"][0] == "cd here/n1 && vecdb serve"
    assert str(Path("here/n1/vecdb.toml")) in ran.json["written"]


def test_init_without_certificates(cli, tmp_path: Path) -> None:
    ran = cli("cluster", "init", "--name", "prod", "--nodes", THREE, "--insecure", "--coordinators", "--yes")
    assert (ran.code, "whoever reaches the peer ports" in ran.err) == (0, True)
    text = (tmp_path / "prod" / "n2" / "vecdb.toml").read_text()
    assert 'insecure = true' in text
    assert 'role = "coordinator"' in text
    assert "cert_file" not in text


def test_a_plan_alone_writes_nothing_and_asks_nobody(cli, tmp_path: Path) -> None:
    before = tree(tmp_path)
    ran = cli("cluster", "init", "--name", "prod", "--nodes", THREE, "--dry-run")
    assert (ran.code, "prod/n2/vecdb.toml" in ran.out) == (0, True)
    assert cli("cluster", "init", "--name", "prod", "--nodes", THREE, "--dry-run", "--json").json["written"] == []
    ran = cli("cluster", "init", "--name", "prod", "--nodes", THREE)
    assert (ran.code, "needs --yes" in ran.err) == (2, True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("argv", "words"), [
    (["--nodes", "N_1=a:7702"], "is no name of a node"),
    (["--name", "Prod", "--nodes", "n1=a:7702"], "is no name of a cluster"),
    (["--nodes", "n1"], "is no node"), (["--nodes", ""], "names no node"), (["--nodes", "n1=a"], "is no address"),
    (["--nodes", "n1=a:7702,n2=a:7702"], "have the same address"),
    (["--nodes", "n1=127.0.0.1:17702,n2=127.0.0.1:17703"], "the HTTP port of n1"),
    (["--nodes", "n1=a:2"], "a port too low"),
    (["--nodes", "n1=a:7702", "--zone", "n2=x"], "says nothing of a node that is named"),
    (["--nodes", "n1=a:7702", "--zone", "n1=a b"], "is no name of a zone"),
    (["--nodes", "n1=a:7702", "--set", "cluster.zonne=b"], "did you mean cluster.zone?"),
    (["--nodes", "n1=a:7702", "--out", "file"], "is no folder"),
    (["--nodes", "n1=a:7702", "--out", "taken"], "holds a node already"),
])
def test_init_refuses_what_would_not_serve(cli, tmp_path: Path, argv: list[str], words: str) -> None:
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "n1").write_text("")
    (tmp_path / "taken" / "n1" / "data").mkdir(parents=True)
    before = tree(tmp_path)
    ran = cli("cluster", "init", *([] if "--name" in argv else ["--name", "prod"]), *argv, "--yes")
    assert (ran.code, words in ran.err) == (2, True), ran.err
    assert tree(tmp_path) == before


def test_init_finds_ports_in_use(cli, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        ran = cli("cluster", "init", "--name", "prod", "--nodes", f"n1=127.0.0.1:{port}", "--yes")
    assert (ran.code, f"port {port}" in ran.err) == (4, True)
    assert not (tmp_path / "prod").exists()


# -- join


def join(cli, *argv: object, at: str = "10.0.0.1:7702", address: str = "10.0.0.4:7702"):
    return cli("cluster", "join", "--node", "n4", "--at", at, "--address", address, *argv)


def test_join_writes_a_folder_that_serves(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    issue(tmp_path / "certs", "prod", ["n4"])
    (tmp_path / "tok").write_text(TOKEN + "\n")
    ran = join(cli, "--token-file", "tok", "--certs", "certs", "--zone", "west", "--capacity", "2", "--no-check",
               "--yes")
    assert ran.code == 0, ran.err
    assert "  cd n4 && vecdb serve" in ran.out.splitlines()
    assert "was not asked" in ran.err
    assert TOKEN not in ran.out + ran.err
    assert tree(tmp_path / "n4") == {"vecdb.toml", "ca.pem", "n4.pem", "n4.key", "token"}
    monkeypatch.chdir(tmp_path / "n4")
    settings = load().settings
    cluster = settings.cluster
    assert (cluster.name, cluster.join, cluster.role, cluster.zone, cluster.capacity, cluster.advertise) == (
        "prod", ("10.0.0.1:7702",), "shard", "west", 2.0, "10.0.0.4:7702")
    assert cluster.token.get_secret_value() == TOKEN
    assert settings.security.require_keys == "always", "the admin's key of the others is not known here"
    assert cli("serve", "--check", "--json").code == 0


def test_join_makes_the_certificate_where_the_authority_is(cli, tmp_path: Path, monkeypatch) -> None:
    issue(tmp_path / "certs", "prod", ["n1"])
    (tmp_path / "key").write_text("an-admin-key-of-some-length\n")
    monkeypatch.setenv("VECDB_CLUSTER__TOKEN", TOKEN)
    asked = ["--certs", "certs", "--name", "prod", "--admin-key-file", "key", "--no-check"]
    assert join(cli, *asked, "--dry-run", "--json").json["written"] == []
    assert not (tmp_path / "certs" / "n4.pem").exists()
    ran = join(cli, *asked, "--yes", "--json", "--role", "both")
    assert ran.code == 0, ran.err
    assert "10.0.0.4" not in dns_names((tmp_path / "n4" / "n4.pem").read_bytes())
    assert tree(tmp_path / "certs") == {"ca.key", "ca.pem", "n1.key", "n1.pem"}, "the node alone has its key"
    monkeypatch.delenv("VECDB_CLUSTER__TOKEN")
    monkeypatch.chdir(tmp_path / "n4")
    assert load().settings.security.admin_key.get_secret_value() == "an-admin-key-of-some-length"
    assert load().settings.cluster.role == "both"


@pytest.mark.parametrize(("argv", "code", "words"), [
    (["--certs", "certs"], 2, "is missing"),
    (["--certs", "certs", "--token", "vdj_x"], 2, "is none"),
    (["--certs", "certs", "--token", TOKEN, "--token-file", "tok"], 2, "given twice"),
    (["--certs", "certs", "--token-file", "nowhere"], 2, "cannot be read"),
    (["--token", TOKEN], 2, "shows who it is by a certificate"),
    (["--insecure", "--token", TOKEN], 2, "nothing says of which cluster"),
    (["--certs", "certs", "--name", "other", "--token", TOKEN], 2, "is no certificate of n4 in other"),
    (["--certs", "none", "--token", TOKEN], 2, "has neither n4.pem nor ca.key"),
    (["--certs", "certs", "--token", TOKEN, "--zone", "a b"], 2, "is no name of a zone"),
])
def test_join_refuses_what_would_not_serve(cli, tmp_path: Path, argv: list[str], code: int, words: str) -> None:
    issue(tmp_path / "certs", "prod", ["n4"])
    (tmp_path / "tok").write_text(TOKEN)
    before = tree(tmp_path)
    ran = join(cli, *argv, "--no-check", "--yes")
    assert (ran.code, words in ran.err) == (code, True), ran.err
    assert tree(tmp_path) == before


def test_join_says_that_no_member_answers(cli, tmp_path: Path, free: int) -> None:
    issue(tmp_path / "certs", "prod", ["n4"])
    ran = join(cli, "--certs", "certs", "--token", TOKEN, "--yes", at=f"127.0.0.1:{free}", address="127.0.0.1:7792")
    assert (ran.code, "no member answers" in ran.err, "--no-check" in ran.err) == (11, True, True)
    assert not (tmp_path / "n4").exists()


def test_a_join_that_comes_to_nothing_leaves_nothing(cli, tmp_path: Path, free: int) -> None:
    issue(tmp_path / "certs", "prod", ["n1"])
    before = tree(tmp_path)
    given = ["--certs", "certs", "--name", "prod", "--token", TOKEN]
    refused = join(cli, *given, "--yes", at=f"127.0.0.1:{free}", address="127.0.0.1:7792")
    unasked = join(cli, *given, "--no-check")
    planned = join(cli, *given, "--no-check", "--dry-run")
    assert (refused.code, unasked.code, planned.code) == (11, 2, 0), unasked.err
    assert tree(tmp_path) == before
