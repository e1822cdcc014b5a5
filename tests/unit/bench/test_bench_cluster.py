"""What the cluster's harness counts, and that it tells what it counted."""

import re

import numpy as np
import pytest

from bench.cluster import __main__ as harness
from bench.cluster import report
from bench.cluster.gaps import Seen, during, layouts, longest_gap, one_of_each, summary
from bench.cluster.measure import indexed
from vecdb.cluster.placement import ranges
from vecdb.cluster.routing import hash_of_id


def test_a_gap_is_the_longest_time_without_a_success():
    calls = [Seen(0.0, 1.0), Seen(1.0, 1.5), Seen(1.5, 4.0, "Unavailable: x"), Seen(4.0, 5.0), Seen(5.0, 5.2)]
    assert longest_gap(calls, 0.0, 5.5) == pytest.approx(3.5)  # what failed ends none
    assert longest_gap(calls, 1.2, 5.5) == pytest.approx(3.5)
    assert longest_gap(calls, 2.0, 5.5) == pytest.approx(3.0)  # before the harm is no gap of it
    assert longest_gap(calls, 0.0, 9.0) == pytest.approx(3.8)  # nor is one over that has not ended
    assert longest_gap([], 1.0, 3.0) == pytest.approx(2.0)


def test_calls_under_way_at_any_moment_count():
    calls = [Seen(0.0, 1.0), Seen(0.5, 9.0), Seen(3.0, 4.0), Seen(6.0, 7.0)]
    assert during(calls, 2.0, 5.0) == calls[1:3]


def test_a_summary_keeps_errors_apart():
    calls = [Seen(at, at + took / 1e3) for at, took in enumerate(range(1, 101))]
    told = summary([*calls, Seen(0.0, 50.0, "Unavailable: x"), Seen(1.0, 50.0, "Unavailable: x")])
    assert told["calls"] == 102
    assert told["errors"] == {"Unavailable: x": 2}
    assert told["longest_ms"] == pytest.approx(100.0)
    assert told["p50_ms"] == pytest.approx(np.percentile(range(1, 101), 50), abs=0.01)
    assert summary([Seen(0.0, 1.0, "e")])["p50_ms"] is None


def test_a_group_of_ids_has_one_of_every_shard():
    groups = one_of_each(300, 3)
    assert len(groups) > 50
    assert len({one for group in groups for one in group}) == 3 * len(groups)
    for group in groups:
        for identity, (low, high) in zip(group, ranges(3), strict=True):
            assert low <= hash_of_id(identity) < high


def test_layouts_have_no_more_replicas_than_nodes():
    assert layouts([1, 2, 3], [1, 3]) == [(1, 1), (2, 1), (3, 1), (3, 3)]
    assert layouts([3, 2], [3]) == [(3, 3)]
    with pytest.raises(SystemExit):
        harness.parse(["--nodes", "2", "--replicas", "3"])
    with pytest.raises(SystemExit):
        harness.parse(["--parts", "query,kills"])


def test_a_collection_is_indexed_when_no_more_waits_than_is_scanned_on_purpose():
    sealed = {"index": {"kind": "hnsw"}}
    grows = {"index": {"kind": "hnsw", "linked": 64_000, "scanned": 999}}
    assert indexed({"segments": [sealed, grows]})
    grows["index"]["scanned"] = 1_000
    assert not indexed({"segments": [sealed, grows]})
    grows["index"].update(linked=0, scanned=500)
    assert indexed({"segments": [grows]})


def layout(nodes, replicas, qps=100.0, errors=None, **more):
    calls = {"calls": 5, "errors": errors or {}, "p50_ms": 1.0, "p99_ms": 2.0, "longest_ms": 300.0}
    change = {"seconds": 1.25, "reads": calls, "writes": calls}
    return {"nodes": nodes, "replicas": replicas, "shards": nodes, "recall": 0.9512, "ef": 40, "idle_percent": 12.5,
            "ingest": {"acknowledged_s": 30_000, "indexed_s": 9_000},
            "points": [{"side": "direct", "how": "sdk-sync", "inflight": 8, "rows": 1, "qps": qps, "p50_ms": 1.5,
                        "p95_ms": 2.0, "p99_ms": 3.0, "server_us": 500.0, "client_us": 200.0}],
            "changes": {"split": change, "merge": change, "recall": 0.95}, **more}  # fmt: skip


def test_tables_say_what_was_found_and_what_was_not_done(capsys):
    kill = {"node": "s2", "reads": {"calls": 9, "errors": {}, "p50_ms": 1, "p99_ms": 2, "longest_ms": 40},
            "writes": {"calls": 3, "errors": {}, "p50_ms": None, "p99_ms": None, "longest_ms": None}}  # fmt: skip
    killed = {"kills": [kill], "writes_median_ms": 1_200, "writes_worst_ms": 1_800, "reads_median_ms": 30,
              "reads_worst_ms": 45}  # fmt: skip
    rows = [layout(1, 1, errors={"OutcomeUnknown: lost": 2}), layout(3, 3, failover=killed)]
    assert report.queries(rows)[0][:5] == ("1", "1", "direct", "8", "100")
    alone, three = report.others(rows)
    assert alone[5:] == ("-", "-", "-", "1,250", "1,250", "8")  # two of each of reads and writes, twice
    assert three[5:] == ("1,200, 1,800", "30, 45", "-", "1,250", "1,250", "0")
    about = {"command": "this", "vecdb": "1", "python": "3", "grpcio": "1", "numpy": "2", "dataset": "made",
             "records": 3_000, "dim": 32, "metric": "l2", "cores": 2}  # fmt: skip
    report.tell({"about": about, "rows": rows})
    said = capsys.readouterr().out
    assert re.search(r"share the 2 cores of one machine", said)
    assert "2 x OutcomeUnknown: lost" in said
    assert "take 12.5 % of a core when idle" in said
    assert "kill of s2: 3 writes (none succeeded)" in said


def test_runs_in_parts_are_one_table_if_they_are_of_one_kind():
    about = {"command": "a", "cores": 2, "records": 10}
    first = {"about": about, "rows": [layout(3, 1), layout(1, 1)]}
    second = {"about": {**about, "command": "b"}, "rows": [layout(3, 1, qps=7.0)]}
    both = harness.together([first, second])
    assert both["about"]["command"] == "a; b"
    assert [(row["nodes"], row["points"][0]["qps"]) for row in both["rows"]] == [(1, 100.0), (3, 7.0)]
    second["about"]["records"] = 11
    with pytest.raises(SystemExit, match="records"):
        harness.together([first, second])
