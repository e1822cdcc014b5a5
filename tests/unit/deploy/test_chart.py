"""The Helm chart, rendered by Helm's own library, against Kubernetes' schemas and against what nodes take."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vecdb.config import known_variables
from vecdb.core.nodes import check_label, parse_nodes, split_address

WHY = "make charts installs what is needed"
chart = pytest.importorskip("helm_python.chart", reason=WHY)
schemas = pytest.importorskip("kubernetes_validate", reason=WHY)
yaml = pytest.importorskip("yaml", reason=WHY)

ROOT = Path(__file__).parents[3]
CHART = ROOT / "deploy" / "helm" / "vecdb"
VERSIONS = ("1.25", "1.31", "1.37")
ALL_SET = {
    "tls": {"existingSecret": "clients"}, "podAnnotations": {"team": "search"}, "replicationFactor": 2,
    "settings": {"limits.rate": 1000, "limits.inflight_bytes": 536870912, "cluster.balance_leaders": False},
    "shard": {"zones": ["eu-1a", "eu-1b"], "replicas": 2, "antiAffinity": "required", "priorityClassName": "high",
              "storage": {"size": "2Ti", "className": "fast"}},
    "coordinator": {"replicas": 5, "nodeSelector": {"disk": "ssd"}, "tolerations": [{"operator": "Exists"}],
                    "antiAffinity": "preferred"},
    "networkPolicy": {"clients": [{"podSelector": {"matchLabels": {"app": "web"}}}],
                      "extraEgress": [{"ports": [{"port": 443}]}]},
    "service": {"type": "LoadBalancer", "annotations": {"who": "us"}},
    "image": {"repository": "here/vecdb", "tag": "1", "pullSecrets": [{"name": "pull"}]},
}


def _rendered(values: dict[str, Any] | None = None, name: str = "vecdb") -> list[dict[str, Any]]:
    with chart.Chart.load(CHART) as loaded:
        files = loaded.render(values, name=name, namespace="search")
    return [one for path, text in files.items() if path.endswith(".yaml") for one in yaml.safe_load_all(text) if one]


def _of(objects: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in objects if one["kind"] == kind}


def _environment(objects: list[dict[str, Any]], container: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        found |= _of(objects, "ConfigMap")[source["configMapRef"]["name"]]["data"]
    return found | {one["name"]: one.get("value", "") for one in container["env"]}


@pytest.mark.parametrize("values", [None, ALL_SET], ids=["defaults", "all set"])
def test_helm_finds_nothing_to_complain_of(values: dict[str, Any] | None) -> None:
    found = chart.lint(CHART, values, strict=True)
    assert found["errors"] == []
    assert [one for one in found["messages"] if one["severity"] > 1] == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", [None, ALL_SET], ids=["defaults", "all set"])
def test_objects_are_what_kubernetes_takes(values: dict[str, Any] | None, version: str) -> None:
    objects = _rendered(values, "my")
    assert len(objects) >= 10
    for one in objects:
        schemas.validate(one, version, strict=True)


def test_the_validator_refuses_what_is_wrong() -> None:
    one = _of(_rendered(), "StatefulSet")["vecdb-shard"]
    one["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(schemas.ValidationError, match="livenessProb"):
        schemas.validate(one, VERSIONS[-1], strict=True)


@pytest.mark.parametrize(("values", "named"), [
    ({"shard": {"replica": 3}}, "replica"), ({"coordinator": {"replicas": 2}}, "replicas"),
    ({"clusterName": "A_b"}, "clusterName"), ({"settings": {"LIMITS": 1}}, "LIMITS"), ({"colour": 1}, "colour")])
def test_values_that_are_wrong_are_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(Exception, match=named):
        _rendered(values)


@pytest.mark.parametrize("values", [None, ALL_SET], ids=["defaults", "all set"])
def test_every_setting_of_every_container_exists(values: dict[str, Any] | None) -> None:
    objects = _rendered(values)
    checked = 0
    for one in _of(objects, "StatefulSet").values():
        spec = one["spec"]["template"]["spec"]
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            names = {name for name in _environment(objects, container) if name.startswith("VECDB_")}
            assert names <= set(known_variables())
            checked += len(names)
    assert checked > 30


def test_nodes_are_told_where_the_others_are() -> None:
    objects = _rendered(ALL_SET, "prod")
    services, sets = _of(objects, "Service"), _of(objects, "StatefulSet")
    assert set(sets) == {"prod-vecdb-coordinator", "prod-vecdb-shard-eu-1a", "prod-vecdb-shard-eu-1b"}
    headless = services["prod-vecdb-peers"]
    assert headless["spec"]["clusterIP"] == "None"
    assert headless["spec"]["publishNotReadyAddresses"]
    told = _environment(objects, sets["prod-vecdb-coordinator"]["spec"]["template"]["spec"]["containers"][0])
    founders = parse_nodes(told["VECDB_CLUSTER__NODES"])
    assert len(founders) == 5
    for name, address in founders.items():
        check_label(name, "node")
        assert split_address(address) == (f"{name}.prod-vecdb-peers.search.svc", 7702)
    for zone in ("eu-1a", "eu-1b"):
        spec = sets[f"prod-vecdb-shard-{zone}"]["spec"]
        assert spec["serviceName"] == "prod-vecdb-peers"
        joins = _environment(objects, spec["template"]["spec"]["containers"][0])
        assert joins["VECDB_CLUSTER__JOIN"].split(",") == list(founders.values())
        assert (joins["VECDB_CLUSTER__ROLE"], joins["VECDB_CLUSTER__ZONE"]) == ("shard", zone)
        assert spec["template"]["spec"]["nodeSelector"]["topology.kubernetes.io/zone"] == zone
    assert told["VECDB_LIMITS__INFLIGHT_BYTES"] == "536870912"
    assert told["VECDB_CLUSTER__BALANCE_LEADERS"] == "false"


def test_selectors_find_what_they_are_for() -> None:
    objects = _rendered()
    labels = {name: one["spec"]["template"]["metadata"]["labels"] for name, one in _of(objects, "StatefulSet").items()}

    def found(selector: dict[str, str]) -> set[str]:
        return {name for name, has in labels.items() if selector.items() <= has.items()}

    for name, one in _of(objects, "StatefulSet").items():
        assert found(one["spec"]["selector"]["matchLabels"]) == {name}
    assert found(_of(objects, "Service")["vecdb"]["spec"]["selector"]) == {"vecdb-coordinator"}
    assert found(_of(objects, "Service")["vecdb-peers"]["spec"]["selector"]) == set(labels)
    for name, one in _of(objects, "PodDisruptionBudget").items():
        assert found(one["spec"]["selector"]["matchLabels"]) == {name}
        assert one["spec"]["maxUnavailable"] == 1
    policy = _of(objects, "NetworkPolicy")["vecdb"]["spec"]
    assert found(policy["podSelector"]["matchLabels"]) == set(labels)
    assert policy["ingress"][0]["ports"] == [{"port": 7702}]
    assert found(policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"]) == set(labels)


@pytest.mark.parametrize("values", [None, ALL_SET], ids=["defaults", "all set"])
def test_pods_are_not_root_and_write_only_to_volumes(values: dict[str, Any] | None) -> None:
    for one in _of(_rendered(values), "StatefulSet").values():
        spec = one["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        volumes = {volume["name"] for volume in spec["volumes"]} | {"data"}
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["resources"]["limits"]["memory"]
        probes = spec["containers"][0]
        assert [probes[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")] == [
            "/healthz", "/livez", "/readyz"]


def test_notes_name_a_certificate_for_every_pod() -> None:
    with chart.Chart.load(CHART) as loaded:
        notes = loaded.render(ALL_SET, name="vecdb", namespace="search")["vecdb/templates/NOTES.txt"]
    named = re.search(r"--nodes (\S+)", notes)
    assert named is not None
    pods = {f"{name}-{number}" for name, one in _of(_rendered(ALL_SET), "StatefulSet").items()
            for number in range(one["spec"]["replicas"])}
    assert set(named[1].split(",")) == pods


def test_the_plain_manifests_are_what_the_chart_renders() -> None:
    done = subprocess.run([sys.executable, ROOT / ".ci" / "manifests", "--check"], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_chart_is_of_this_version() -> None:
    read = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    assert read["version"] == read["appVersion"] == version[1]
