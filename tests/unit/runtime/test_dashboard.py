"""The dashboard by Grafana's own types, and its queries and those of the alerts by a parser of PromQL.

Neither was written for this: Grafana's Foundation SDK is generated from Grafana's schemas, and what it does not know of
a dashboard it drops; the parser is the one of GreptimeDB, made after Prometheus'.
"""

import copy
import json
import re
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

import vecdb
from tests.served import Node
from tests.unit.runtime.test_deploy import SUFFIXES, dashboard, expressions, known, rules
from vecdb.runtime.exposition import Exposition
from vecdb.runtime.metrics import Metrics
from vecdb.runtime.replication import Figures, Replication

VARIABLES = {"$__rate_interval": "1m", "$__interval": "15s", "$__range": "1h", "$instance": ".*", "$collection": ".*"}
NOT_IN_THE_SDK = {"definition"}
"""Of a variable: its query once more, as Grafana shows it; Grafana itself writes it."""
COUNTED = {"rate", "increase", "irate"}


def plain(expression: str) -> str:
    """With what Grafana puts in the place of its variables."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


@cache
def parsed() -> dict[str, Any]:
    return {where: promql.parse(plain(expression)) for where, expression in expressions().items()}


def parts(node: Any) -> Iterator[Any]:
    """The nodes of an expression, whatever they hang on."""
    yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        below = getattr(node, name, None)
        if below is not None:
            yield from parts(below)
    for below in getattr(node, "args", None) or ():
        yield from parts(below)


def selectors(node: Any) -> list[Any]:
    return [one for one in parts(node) if isinstance(one, promql.VectorSelector)]


def lost(given: Any, kept: Any, path: str = "") -> list[str]:
    """Paths of ``given`` that ``kept`` does not have, or has otherwise."""
    if isinstance(given, dict) and isinstance(kept, dict):
        return [found for name, value in given.items() if name not in NOT_IN_THE_SDK
                for found in ([f"{path}.{name}"] if name not in kept else lost(value, kept[name], f"{path}.{name}"))]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        return [found for place, (one, other) in enumerate(zip(given, kept, strict=True))
                for found in lost(one, other, f"{path}[{place}]")]
    return [] if given == kept else [path]


def through_grafanas_types(board: dict[str, Any]) -> dict[str, Any]:
    plugins.register_default_plugins()
    again: dict[str, Any] = json.loads(JSONEncoder().encode(Dashboard.from_json(copy.deepcopy(board))))
    return again


def test_grafanas_types_know_everything_of_the_dashboard() -> None:
    board = dashboard()
    assert lost(board, through_grafanas_types(board)) == []
    assert len(board["panels"]) > 50
    panel = next(one for one in board["panels"] if one["type"] == "timeseries")
    for place in (panel, panel["options"], panel["options"]["legend"], panel["fieldConfig"]["defaults"]["custom"],
                  panel["targets"][0], board):  # else nothing was looked at
        place["no_such_setting"] = 1
        assert lost(board, through_grafanas_types(board)), place
        del place["no_such_setting"]


def test_every_query_of_the_dashboard_and_the_alerts_parses() -> None:
    assert len(parsed()) > 90
    for wrong in ("sum by (le (vecdb_requests_total)", "rate(vecdb_requests_total)", "nosuch(vecdb_requests_total)"):
        with pytest.raises(ValueError, match=r"."):
            promql.parse(wrong)


def test_counters_are_rated_and_quantiles_are_of_buckets() -> None:
    rated = quantiles = 0
    for where, expression in parsed().items():
        for call in (one for one in parts(expression) if isinstance(one, promql.Call)):
            name = call.func.name
            if name in COUNTED:
                rated += 1
                for selector in selectors(call):
                    assert selector.name.endswith(("_total", "_bucket", "_count", "_sum")), (where, selector.name)
            if name == "histogram_quantile":
                quantiles += 1
                buckets, aggregates = selectors(call), [one for one in parts(call)
                                                        if isinstance(one, promql.AggregateExpr)]
                assert all(one.name.endswith("_bucket") for one in buckets), where
                assert aggregates, where
                assert all("le" in one.modifier.labels for one in aggregates), where
    assert rated > 40
    assert quantiles > 5


def test_what_a_node_tells_is_what_the_dashboard_asks(tmp_path: Path) -> None:
    node = Node(tmp_path / "data", http_port=0)
    try:
        with vecdb.connect(node.url) as db:
            docs = db.create_collection("docs", dim=2)
            docs.upsert(ids=[1, 2], vectors=[[1, 0], [0, 1]])
            assert docs.query([1, 0], k=1).ids == [1]
        url = f"http://127.0.0.1:{node.addresses['http_port']}/metrics"
        with urllib.request.urlopen(url, timeout=30) as page:
            text = page.read().decode()
    finally:
        node.stop()
    told = {name + suffix for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
            for suffix in ("_bucket", "_count", "_sum") if kind == "histogram"} \
        | set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    of_a_cluster = {family.name + suffix for family in Exposition([Replication(Figures, Metrics().names)]).families()
                    for suffix in SUFFIXES[family.type]}
    asked = {selector.name for expression in parsed().values() for selector in selectors(expression)} - {"up"}
    assert asked <= known()
    assert len(asked - of_a_cluster) > 50
    assert asked - of_a_cluster - told == set(), "neither a node nor a cluster tells of these"


def test_variables_are_filled_from_labels_there_are() -> None:
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
            assert metric in known()
            assert any(label in [one.name for one in selector.matchers.matchers]
                       for expression in parsed().values() for selector in selectors(expression)), label
    assert all(rule["alert"] in parsed() for rule in rules())
