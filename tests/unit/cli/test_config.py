"""Settings: the order of sources, and that nothing misspelt is taken for a setting."""

import os
import tomllib
from pathlib import Path

import pytest

from vecdb.config import MASK, NAMES, ServerSettings, Settings, known_variables, load, load_settings
from vecdb.core.errors import InvalidArgument


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [one for one in os.environ if one.startswith("VECDB_")]:
        monkeypatch.delenv(name)


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
    ("engine = 3", "settings.engine: must be a table, [engine]"),
    ("[Engine]\nthreads = 3", "Engine.threads is no setting; did you mean engine.threads?"),
    ("[nothing]", "nothing is no setting"),
    ("[limit]\nmemory_bytes = 3", "limit.memory_bytes is no setting; did you mean limits.memory_bytes?"),
    ("[server]\nport = 3", "server.port is no setting; did you mean server.grpc_port?"),
    ("DATA_DIR = 'x'", "DATA_DIR"),
    ("_env_file = 'x'", "_env_file is no setting"),
    ("[engine.threads]\nx = 1", "engine.threads"),
    ("not toml", "not TOML"),
])
def test_a_file_that_is_wrong_says_where(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "vecdb.toml").write_text(text)
    with pytest.raises(InvalidArgument) as caught:
        load_settings()
    assert named in caught.value.message
    assert "vecdb.toml" in caught.value.message


def test_settings_made_in_code_are_what_the_code_says(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "vecdb.toml").write_text("[server]\nhost = '10.0.0.1'\n")
    monkeypatch.setenv("VECDB_SERVER__HOST", "10.0.0.2")
    monkeypatch.setenv("VECDB_DATADIR", "misspelt")
    assert Settings().server.host == "127.0.0.1"
    made = Settings(data_dir=Path("x"), server=ServerSettings(grpc_port=0))
    assert (made.server.host, made.server.grpc_port, made.data_dir) == ("127.0.0.1", 0, Path("x"))
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        Settings(sever={})


def test_variables_may_be_written_small(monkeypatch) -> None:
    monkeypatch.setenv("vecdb_engine__threads", "5")
    loaded = load()
    assert loaded.settings.engine.threads == 5
    assert loaded.origin("engine.threads") == ("env", "VECDB_ENGINE__THREADS")


@pytest.mark.parametrize("name", ["VECDB_DATADIR", "VECDB_ENGINE__THREAD", "VECDB_ENGINES__THREADS",
                                  "VECDB_ENGINE__THREADS__X"])
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


def test_flags_stand_above_all_and_every_value_knows_its_origin(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "vecdb.toml").write_text("[server]\ngrpc_port = 1\nhttp_port = 2\nprocesses = 3\n")
    monkeypatch.setenv("VECDB_SERVER__GRPC_PORT", "10")
    monkeypatch.setenv("VECDB_SERVER__HTTP_PORT", "20")
    loaded = load(flags={"server.grpc_port": (100, "--port")})
    server = loaded.settings.server
    assert (server.grpc_port, server.http_port, server.processes) == (100, 20, 3)
    assert loaded.origin("server.grpc_port") == ("flag", "--port")
    assert loaded.origin("server.http_port") == ("env", "VECDB_SERVER__HTTP_PORT")
    assert loaded.origin("server.processes") == ("file", "vecdb.toml")
    assert loaded.origin("server.host").layer == "default"
    assert [name for name, _, _ in loaded.rows()] == list(NAMES)


def test_an_unknown_flag_names_the_nearest() -> None:
    with pytest.raises(InvalidArgument, match=r"server\.grpc_prt is no setting; did you mean server\.grpc_port.*--set"):
        load(flags={"server.grpc_prt": (1, "--set server.prt")})


def test_a_flag_sets_one_value_and_no_section() -> None:
    with pytest.raises(InvalidArgument, match=r"settings\.server: must be a table.*--set server"):
        load(flags={"server": ("5", "--set server"), "server.host": ("a", "--host")})
    for name in ("", ".", "server.", "server.host.x"):
        with pytest.raises(InvalidArgument, match=f"{name} is no setting"):
            load(flags={name: ("5", "--set")})


@pytest.mark.parametrize(("text", "nearest"), [
    ("data_dri = 'x'", "data_dir"), ("[engine]\nthread = 3", "engine.threads"),
    ("seal_record = 3", "engine.seal_records"), ("[server]\nport = 3", "server.grpc_port"),
    ("[limit]\nmemory_bytes = 3", "limits.memory_bytes"),
])
def test_a_misspelt_key_names_the_nearest(tmp_path: Path, text: str, nearest: str) -> None:
    (tmp_path / "vecdb.toml").write_text(text)
    with pytest.raises(InvalidArgument, match=f"(did you mean|known are).*{nearest}"):
        load()


def test_sizes_and_lengths_of_time_are_read(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "vecdb.toml").write_text("[limits]\nmemory_bytes = '4GiB'\ndeadline_s = '90s'\n[tls]\nreload_s = 3\n")
    monkeypatch.setenv("VECDB_LIMITS__MESSAGE_BYTES", "64MB")
    settings = load_settings()
    assert (settings.limits.memory_bytes, settings.limits.message_bytes) == (4 << 30, 64_000_000)
    assert (settings.limits.deadline_s, settings.tls.reload_s) == (90, 3)
    monkeypatch.setenv("VECDB_LIMITS__MESSAGE_BYTES", "64 parrots")
    with pytest.raises(InvalidArgument, match=r"limits\.message_bytes: '64 parrots' is no size.*VECDB_LIMITS__MESSAGE"):
        load_settings()


@pytest.mark.parametrize(("text", "named"), [
    ("[tls]\ncert_file = 'a'", "tls.cert_file: needs tls.key_file"),
    ("[tls]\nkey_file = 'a'", "tls.key_file: needs tls.cert_file"),
    ("[tls]\nclient_ca_file = 'a'", "tls.client_ca_file: needs tls.cert_file"),
    ("[client]\ncert_file = 'a'", "client.cert_file: needs client.key_file"),
    ("[client]\nurl = 'localhost:7700'", "client.url: 'localhost:7700' is no URL"),
    ("[limits]\ndeadline_s = 7200", "limits.deadline_s: deadline_s, 7200 s, is above deadline_max_s, 3600 s"),
    ("[limits]\ndeadline_max_s = 1", "limits.deadline_max_s: deadline_s, 60 s, is above"),
    ("[limits]\ninflight_bytes = '1MiB'", "limits.inflight_bytes: one message"),
    ("[limits]\nburst = 5", "limits.burst: needs limits.rate"),
    ("[limits]\nmemory_bytes = '1GiB'\n[engine]\nmemory_bytes = '2GiB'", "engine.memory_bytes: 2147483648 is above"),
    ("[server]\ngrpc_port = 9\nhttp_port = 9", "server.http_port: 9 is server.grpc_port too"),
    ("[limits]\ndeadline_s = 'inf'", "limits.deadline_s"),
    ("[limits]\nrate = nan", "limits.rate"),
    ("[server]\nhost = ''", "server.host"),
])
def test_values_are_held_against_each_other(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "vecdb.toml").write_text(text)
    with pytest.raises(InvalidArgument) as caught:
        load()
    assert named in caught.value.message
    assert "vecdb.toml" in caught.value.message


def test_secrets_are_masked_and_come_from_files(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "key").write_text("vdb_a_secret\n")
    (tmp_path / "vecdb.toml").write_text("[security]\nadmin_key_file = 'key'\n[client]\napi_key_file = 'key'\n"
                                         "[telemetry]\notlp_endpoint = 'https://me:hidden@there'\n")
    monkeypatch.setenv("VECDB_API_KEY", "vdb_b_nearer")
    loaded = load()
    assert loaded.settings.security.admin_key.get_secret_value() == "vdb_a_secret"
    assert loaded.settings.client.api_key.get_secret_value() == "vdb_b_nearer"
    masked = loaded.masked()
    assert masked["security"]["admin_key"] == masked["client"]["api_key"] == MASK
    assert masked["telemetry"]["otlp_endpoint"] == f"https://{MASK}@there"
    for secret in ("vdb_a_secret", "vdb_b_nearer", "hidden"):
        assert secret not in repr(masked)
        assert secret not in repr(loaded.settings).replace("https://me:hidden@there", "")
    assert load_settings().security.admin_key_file == Path("key")
    assert load(flags={"security.admin_key": ("x", "--set")}).secrets_on_command_line() == ["security.admin_key"]


@pytest.mark.parametrize(("content", "message"), [("", "one line"), ("a\nb", "one line"), (None, "cannot be read")])
def test_a_file_that_holds_no_secret(tmp_path: Path, monkeypatch, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "key").write_text(content)
    monkeypatch.setenv("VECDB_SECURITY__ADMIN_KEY_FILE", "key")
    with pytest.raises(InvalidArgument, match=f"admin_key_file: key .*{message}.*VECDB_SECURITY__ADMIN_KEY_FILE"):
        load()
    monkeypatch.setenv("VECDB_SECURITY__ADMIN_KEY", "x")
    with pytest.raises(InvalidArgument, match="given twice"):
        load()


def test_short_names_of_the_client(monkeypatch) -> None:
    monkeypatch.setenv("VECDB_URL", "grpc://a:1")
    monkeypatch.setenv("VECDB_CLIENT", '{"url": "grpc://whole:1", "timeout_s": "5s"}')
    loaded = load()
    assert (loaded.settings.client.url, loaded.settings.client.timeout_s) == ("grpc://a:1", 5)
    assert loaded.origin("client.url") == ("env", "VECDB_URL")
    assert loaded.origin("client.timeout_s") == ("env", "VECDB_CLIENT")
    monkeypatch.setenv("VECDB_CLIENT__URL", "grpc://b:1")
    with pytest.raises(InvalidArgument, match="VECDB_CLIENT__URL and VECDB_URL say different things"):
        load_settings()
    monkeypatch.setenv("VECDB_URL", "")
    assert load_settings().client.url == "grpc://b:1"


def test_a_whole_section_in_one_variable(monkeypatch) -> None:
    monkeypatch.setenv("VECDB_SERVER", '{"grpc_port": 5, "http_port": 6}')
    monkeypatch.setenv("VECDB_SERVER__HTTP_PORT", "7")
    server = load_settings().server
    assert (server.grpc_port, server.http_port) == (5, 7)
    monkeypatch.setenv("VECDB_SERVER", '{"port": 5}')
    with pytest.raises(InvalidArgument, match=r"server\.port is no setting.*VECDB_SERVER"):
        load_settings()
    for text in ("5", "", "null", "[1]", "{", "vdb_a_secret"):
        monkeypatch.setenv("VECDB_SERVER", text)
        with pytest.raises(InvalidArgument, match="must be a JSON object; VECDB_SERVER__NAME sets one") as caught:
            load_settings()
        assert "vdb_a_secret" not in str(caught.value.fields) + caught.value.message


def test_what_is_masked_can_be_read_again(tmp_path: Path) -> None:
    from vecdb.cli.serve import to_toml

    loaded = load(flags={"server.host": ('a "b"\n', "--host"), "limits.rate": (2.5, "--set")})
    (tmp_path / "again.toml").write_text(to_toml(loaded))
    again = load(tmp_path / "again.toml")
    assert again.settings == loaded.settings
    assert tomllib.loads(to_toml(loaded))["limits"]["rate"] == 2.5


def test_every_variable_is_listed() -> None:
    listed = known_variables()
    assert {"VECDB_DATA_DIR", "VECDB_SERVER__GRPC_PORT", "VECDB_CLIENT__URL", "VECDB_URL"} <= set(listed)
    assert len(listed) == len(set(listed))


CLUSTER = """
[server]
node_id = "n1"
[cluster]
name = "prod"
nodes = {n1 = "127.0.0.1:17702", n2 = "[::1]:17703"}
"""


def test_a_cluster_s_nodes_as_a_table_a_variable_and_a_flag(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "vecdb.toml").write_text(CLUSTER)
    assert load().settings.cluster.nodes == {"n1": "127.0.0.1:17702", "n2": "[::1]:17703"}
    assert Settings().cluster.name == ""
    monkeypatch.setenv("VECDB_CLUSTER__NODES", "n2=localhost:2, n1=localhost:1,")
    loaded = load()
    assert list(loaded.settings.cluster.nodes.items()) == [("n1", "localhost:1"), ("n2", "localhost:2")]
    assert loaded.origin("cluster.nodes").layer == "env"
    loaded = load(flags={"cluster.nodes": ("n1=h:1,n2=h:2", "--set"), "cluster.insecure": ("true", "--set")})
    assert loaded.settings.cluster.nodes["n1"] == "h:1"
    assert load(flags={"cluster.nodes": ("", "--set"), "cluster.name": ("", "--set")}).settings.cluster.nodes == {}


@pytest.mark.parametrize(("setting", "value", "message"), [
    ("cluster.name", "", "nodes: needs cluster.name"),
    ("cluster.name", "Prod", "'Prod' is no name of a cluster"),
    ("cluster.nodes", "", "nodes: must name the nodes"),
    ("cluster.nodes", "n1", "'n1' is no node; write n1=host:7702"),
    ("cluster.nodes", "n1=a:1,n1=a:2", "'n1' stands there twice"),
    ("cluster.nodes", "n1=localhost:1,n2=localhost:1", "n1 and n2 have the same address"),
    ("cluster.nodes", "n_1=localhost:1", "'n_1' is no name of a node"),
    ("cluster.nodes", "n1=localhost", "'localhost' is no address"),
    ("cluster.nodes", "n1=::1:7702", "'::1:7702' is no address"),
    ("cluster.nodes", "n1=localhost:0", "'localhost:0' is no address"),
    ("cluster.nodes", "n2=localhost:1", r"node_id: 'n1' is not among cluster\.nodes \(n2\)"),
    ("server.node_id", "", r"must say which of cluster\.nodes this node is"),
    ("cluster.nodes", "n1=10.0.0.1:1", "without TLS"),
    ("cluster.host", "0.0.0.0", "without TLS"),
    ("cluster.cert_file", "there.pem", "is one of three"),
    ("cluster.election_s_min", "0.2", "at least three times heartbeat_s"),
    ("cluster.election_s_max", "1s", "below election_s_max, 1 s"),
    ("cluster.nodes", "n1=localhost:7701", "on port 7701"),
    ("cluster.replication_factor", "0", "replication_factor"),
    ("cluster.nodes", ",".join(f"n{number}=localhost:{number}" for number in range(1, 9)), "8 nodes, more than 7"),
    ("cluster.role", "shard", "is for nodes that join"),
    ("cluster.role", "leader", "cluster.role"),
    ("cluster.zone", "rack 1", "is no name of a zone"),
    ("cluster.capacity", "0", "cluster.capacity"),
    ("cluster.advertise", "0.0.0.0:7702", "leads others nowhere"),
    ("cluster.advertise", "here", "'here' is no address"),
    ("cluster.peer_port", "7701", "on port 7701"),
    ("server.advertise", "[::]:7700", "leads others nowhere"),
    ("cluster.join", "localhost:7702", r"cluster\.nodes too"),
    ("cluster.nods", "n1=localhost:1", r"did you mean cluster\.nodes"),
])
def test_what_a_cluster_s_settings_must_not_say(tmp_path: Path, setting: str, value: str, message: str) -> None:
    (tmp_path / "vecdb.toml").write_text(CLUSTER)
    with pytest.raises(InvalidArgument, match=message):
        load(flags={setting: (value, f"--set {setting}")})


JOINING = """
[server]
node_id = "s1"
[cluster]
name = "prod"
join = ["localhost:7712", "localhost:7722", "localhost:7712"]
token = "vdj_abc_secret"
"""


def test_who_joins_needs_no_nodes(tmp_path: Path) -> None:
    (tmp_path / "vecdb.toml").write_text(JOINING)
    loaded = load()
    cluster = loaded.settings.cluster
    assert cluster.join == ("localhost:7712", "localhost:7722")
    assert (cluster.part, cluster.address("s1"), cluster.listens_on("s1")) == ("shard", "127.0.0.1:7702", 7702)
    assert loaded.masked()["cluster"]["token"] == "********"
    assert "vdj_abc_secret" not in str(loaded.masked())
    advertised = load(flags={"cluster.advertise": ("localhost:7732", "--set"), "cluster.role": ("both", "--set"),
                             "cluster.zone": ("rack-1.a", "--set"), "cluster.capacity": ("2.5", "--set")}).settings
    assert (advertised.cluster.part, advertised.cluster.address("s1")) == ("both", "localhost:7732")
    assert advertised.cluster.listens_on("s1") == 7732
    assert load(flags={"cluster.peer_port": ("7742", "--set")}).settings.cluster.address("s1") == "127.0.0.1:7742"
    (tmp_path / "token").write_text("vdj_abc_other\n")
    (tmp_path / "vecdb.toml").write_text(JOINING.replace('token = "vdj_abc_secret"', 'token_file = "token"'))
    assert load().settings.cluster.token.get_secret_value() == "vdj_abc_other"


def test_who_founds_listens_where_others_are_told(tmp_path: Path) -> None:
    (tmp_path / "vecdb.toml").write_text(CLUSTER)
    cluster = load().settings.cluster
    assert cluster.part == "both"
    assert cluster.address("n1") == cluster.nodes["n1"]
    cluster = load(flags={"cluster.advertise": ("localhost:9", "--set"), "cluster.role": ("coordinator", "--set")}
                   ).settings.cluster
    assert (cluster.part, cluster.address("n1")) == ("coordinator", "localhost:9")


@pytest.mark.parametrize(("setting", "value", "message"), [
    ("cluster.name", "", "join: needs cluster.name"),
    ("cluster.join", "", "must name the nodes of the cluster.*or say where to join"),
    ("cluster.join", "c1", "'c1' is no address"),
    ("cluster.join", "10.0.0.1:7702", "must say where other nodes reach this one"),
    ("server.node_id", "", "must say how the node that joins is called"),
    ("server.node_id", "S_1", "'S_1' is no name of a node"),
    ("cluster.host", "0.0.0.0", "must say where other nodes reach this one"),
    ("cluster.advertise", "10.0.0.9:7702", "without TLS"),
    ("cluster.peer_port", "7700", "on port 7700"),
])
def test_what_the_settings_of_who_joins_must_not_say(tmp_path: Path, setting: str, value: str, message: str) -> None:
    (tmp_path / "vecdb.toml").write_text(JOINING)
    with pytest.raises(InvalidArgument, match=message):
        load(flags={setting: (value, f"--set {setting}")})


def test_certificates_between_nodes_and_none(tmp_path: Path) -> None:
    (tmp_path / "vecdb.toml").write_text(CLUSTER)
    files = {f"cluster.{one}": (f"{one}.pem", "--set") for one in ("cert_file", "key_file", "ca_file")}
    far = {"cluster.nodes": ("n1=10.0.0.1:1,n2=10.0.0.2:1", "--set")}
    assert load(flags=files | far).settings.cluster.cert_file == Path("cert_file.pem")
    assert load(flags={**far, "cluster.insecure": ("true", "--set")}).settings.cluster.insecure
    with pytest.raises(InvalidArgument, match="insecure: is true, and there are certificates"):
        load(flags={**files, "cluster.insecure": ("true", "--set")})
