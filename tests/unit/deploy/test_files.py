"""Compose files and what stands beside them: settings that exist, nodes that agree, nothing that is root."""

import re
import shutil
import subprocess
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest

from vecdb.config import Settings, load

yaml = pytest.importorskip("yaml")
DEPLOY = Path(__file__).parents[3] / "deploy"
CLUSTERS = sorted(path.name for path in DEPLOY.glob("docker-compose*.yml")
                  if "chaos" not in path.name and "monitoring" not in path.name)
DEFAULT = re.compile(r"\$\{([A-Z0-9_]+):-([^}]*)\}")


def _file(name: str) -> dict[str, Any]:
    """With the defaults of its variables."""
    text = DEFAULT.sub(lambda found: found[2], (DEPLOY / name).read_text(encoding="utf-8"))
    assert "${" not in text.replace("$$", ""), f"{name}: a variable without a default"
    read: dict[str, Any] = yaml.safe_load(text)
    return read


def _nodes(read: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: one for name, one in read["services"].items()
            if "VECDB_SERVER__NODE_ID" in (one.get("environment") or {})}


def _settings(service: dict[str, Any], monkeypatch: pytest.MonkeyPatch, more: dict[str, str] | None = None) -> Settings:
    with monkeypatch.context() as patch, NamedTemporaryFile("w") as token:
        token.write("made before the node starts")
        token.flush()
        for name, value in (service["environment"] | (more or {})).items():
            patch.setenv(name, token.name if name == "VECDB_CLUSTER__TOKEN_FILE" else str(value))
        return load().settings


@pytest.mark.parametrize("name", CLUSTERS)
def test_nodes_take_their_settings_and_know_each_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = _file(name)
    nodes = _nodes(read)
    assert len(nodes) >= 3
    for service, node in nodes.items():
        settings = _settings(node, monkeypatch)
        assert settings.server.node_id == service
        known = {address.rpartition(":")[0] for address in (*settings.cluster.nodes.values(), *settings.cluster.join)}
        assert known <= {alias for one in nodes.values() for alias in one["networks"]["peers"]["aliases"]}
        assert settings.cluster.address(service) == f"{service}.peers:7702"
        assert not settings.cluster.insecure
    assert read["networks"]["peers"]["internal"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_nodes_are_limited_and_not_root(name: str) -> None:
    read = _file(name)
    for service, node in _nodes(read).items():
        assert node["read_only"], service
        assert node["cap_drop"] == ["ALL"], service
        assert "user" not in node, service
        assert node["mem_limit"], service
        assert node["volumes"] == [f"{service}:/data"], service
        assert service in read["volumes"], service
        assert all(port.startswith("127.0.0.1:") for port in node["ports"]), service


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_node_gets_a_certificate(name: str) -> None:
    read = _file(name)
    certs = read["services"]["certs"]
    assert set(certs["environment"]["NODES"].split()) == set(_nodes(read))
    assert {volume.partition(":")[0] for volume in certs["volumes"]} == {"authority", *_nodes(read)}
    assert certs["network_mode"] == "none"


@pytest.mark.parametrize("name", CLUSTERS)
def test_ports_are_told_apart(name: str) -> None:
    ports = [port.rsplit(":", 1)[0] for node in _nodes(_file(name)).values() for port in node["ports"]]
    assert len(ports) == len(set(ports))


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_chaos_overlays_set_what_there_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    below = _nodes(_file(name))
    above = _file(name.replace(".yml", ".chaos.yml"))["services"]
    for service, node in below.items():
        settings = _settings(node, monkeypatch, above[service]["environment"])
        assert settings.cluster.election_s_max < 2.0


def test_every_variable_of_the_files_is_explained() -> None:
    told = (DEPLOY / ".env").read_text(encoding="utf-8")
    used = {name for path in DEPLOY.glob("docker-compose*.yml") if "chaos" not in path.name
            for name, _ in DEFAULT.findall(path.read_text(encoding="utf-8"))}
    missing = {name for name in used if not re.search(rf"^#? ?{name}=", told, re.MULTILINE)}
    assert missing == set()


def test_defaults_of_the_files_are_those_that_are_told() -> None:
    told = dict(re.findall(r"^# ([A-Z0-9_]+)=(.*)$", (DEPLOY / ".env").read_text(encoding="utf-8"), re.MULTILINE))
    for path in DEPLOY.glob("docker-compose*.yml"):
        for name, default in DEFAULT.findall(path.read_text(encoding="utf-8")):
            assert told.get(name, default) == default, f"{path.name}: {name}"


def test_monitoring_finds_all_nodes_by_the_name_they_share() -> None:
    (scrape,) = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    (found,) = scrape["dns_sd_configs"]
    for name in CLUSTERS:
        for service, node in _nodes(_file(name)).items():
            assert node["networks"]["clients"]["aliases"] == found["names"], service
    services = _file("docker-compose.monitoring.yml")["services"]
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).exists(), source


def test_grafana_is_given_the_source_and_the_dashboard() -> None:
    folder = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text(encoding="utf-8"))["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards/vecdb.yml").read_text(encoding="utf-8"))["providers"]
    services = _file("docker-compose.monitoring.yml")["services"]
    assert source["type"] == "prometheus"
    assert source["url"].split("/")[2].partition(":")[0] in services
    assert any(volume.startswith("./grafana/vecdb.json:" + provider["options"]["path"])
               for volume in services["grafana"]["volumes"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is no Python package, and not here; "
                    "tests/cluster/test_monitoring.py runs it in a container, and so CI always does")
def test_prometheus_itself_takes_its_files() -> None:
    done = subprocess.run(["promtool", "check", "config", DEPLOY / "prometheus/prometheus.yml"], capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
