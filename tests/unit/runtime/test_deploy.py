"""The dashboard and the alerts speak of metrics that exist, with labels that they have."""

import json
import re
from pathlib import Path

import pytest

from vecdb.ports.replicator import ReplicaStatus
from vecdb.runtime.exposition import Exposition, interpreter
from vecdb.runtime.metrics import Metrics
from vecdb.runtime.process import Collections, EventLoopLag, Host
from vecdb.runtime.replication import Figures, Replication

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",), "info": ("_info",)}
NAME = re.compile(r"(?<![\w$:\"])(?:vecdb|process|python)_[a-z0-9_]+(?!\w|=|!|~)")
SELECTOR = re.compile(r"((?:vecdb|process|python)_[a-z0-9_]+)\{([^}]*)\}")
LABEL = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)")
FROM_PROMETHEUS = {"instance", "job", "process"}


def known() -> set[str]:
    metrics = Metrics()
    page = Exposition([metrics, Collections(list, metrics.names, wait_s=30.0), EventLoopLag(),
                       Host("1", Path("/"), 0, {}), Replication(Figures, metrics.names), *interpreter()])
    return {family.name + suffix for family in page.families() for suffix in SUFFIXES[family.type]}


def dashboard() -> dict:
    return json.loads((DEPLOY / "grafana/vecdb.json").read_text(encoding="utf-8"))


def rules() -> list[dict]:
    yaml = pytest.importorskip("yaml")
    (group,) = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text(encoding="utf-8"))["groups"]
    return group["rules"]


def expressions() -> dict[str, str]:
    found = {f"{panel['title']} {target['refId']}": target["expr"]
             for panel in dashboard()["panels"] for target in panel.get("targets", ())}
    return found | {rule["alert"]: rule["expr"] for rule in rules()}


def test_every_metric_named_exists():
    there, used = known(), set()
    for where, expression in expressions().items():
        names = set(NAME.findall(expression))
        assert names or where == "VecdbDown", where
        assert names <= there, where
        used |= names
    assert len(used) > 50


def test_what_is_told_of_calls_queries_and_collections_is_shown():
    text = json.dumps(dashboard())
    families = {family.name for family in Exposition([Metrics()]).families()}
    hidden = {name for name in families if name not in text}
    assert hidden <= {"vecdb_cache_entries"}


def test_the_scrape_configuration_shown_can_be_used():
    yaml = pytest.importorskip("yaml")
    (shown,) = re.findall(r"```yaml\n(.*?)```", (DEPLOY / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    settings = yaml.safe_load(shown)
    (job,) = settings["scrape_configs"]
    assert job["authorization"].keys() == {"credentials_file"}, "a bearer token, which is what a key is"
    assert all((DEPLOY / "prometheus" / name).is_file() for name in settings["rule_files"])


def test_expressions_are_closed():
    for where, expression in expressions().items():
        bare = re.sub(r'"[^"]*"', "", expression)
        for opening, closing in ("()", "[]", "{}"):
            assert bare.count(opening) == bare.count(closing), where


def test_selectors_name_labels_that_the_metric_has():
    metrics = Metrics()
    metrics.call_ended("Queries/Query", metrics.call_began("Queries/Query"), "docs", "OK", 1, 1)
    metrics.batch_ran("docs", 1, (0.0,), 0.1, True)
    metrics.recall_measured("docs", "none", 1.0)
    metrics.recall_ended("measured", 0.1)
    metrics.job_ended("seal", "done", 1.0)
    status = ReplicaStatus("n1/1", "ok", "leader", 1, "n1/1", 1, 1, 1, 1, 1)
    figures = Figures({"docs": status}, {"docs": (1, 2)}, {"raft_leader": 1}, {"malformed": 1}, {"sent_frames": 1}, 1,
                      {"cluster": 1}, {"read": 1})
    families = Exposition([metrics, Host("1", Path("/"), 0, {}),
                           Replication(lambda: figures, metrics.names)]).families()
    labels = {sample.name: set(sample.labels) for family in families for sample in family.samples}
    checked = 0
    for where, expression in expressions().items():
        for name, selector in SELECTOR.findall(expression):
            if name in labels:
                checked += 1
                assert set(LABEL.findall(selector)) <= labels[name] | FROM_PROMETHEUS, (where, name)
    assert checked > 50


def test_the_dashboard_is_laid_out():
    board = dashboard()
    assert board["schemaVersion"] >= 39
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert titles == ["Now", "Traffic", "Latency", "Queues and refusals", "Recall", "Segments and jobs",
                      "Memory and disk", "Process", "Replicas"]
    taken = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "instance", "collection"}


def test_alerts_say_what_is_wrong_and_what_to_do():
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
