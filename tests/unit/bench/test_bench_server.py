"""The harness of the server runs end to end and says what it promises; its rulers measure rightly."""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import flood
from bench.peers.client import CLIENTS
from bench.peers.systems import PEERS
from bench.server import __main__ as harness
from bench.server import floor, loads, report
from bench.server.points import Point
from bench.server.processes import Child
from vecdb.v1 import queries_pb2


def point(side, how, inflight, rows, **medians):
    made = Point(side, how, inflight, rows)
    made.take(np.full(10, medians["p50"]), medians.get("qps", 1.0), medians["server"], medians.get("client", 0.0))
    return made.key, made


def test_verdicts_are_the_ratios_they_say():
    points = dict([
        point("index", "threads", 2, 64, p50=1, qps=1_000, server=30),
        point("index", "threads", 1, 1, p50=0.1, server=100),
        point("floor", "raw-sync", 1, 1, p50=0.3, server=150, client=150),
        point("node", "raw-sync", 1, 1, p50=0.44, server=300, client=180),
        point("node", "raw-aio", 1, 64, p50=1, qps=700, server=60),
        point("node", "raw-aio", 8, 64, p50=1, qps=900, server=40),
    ])
    found = {one.name: one for one in report.verdicts(points, 64, 2)}
    assert found["batch path, CPU"].ratio == pytest.approx(30 / 40)
    assert not found["batch path, CPU"].met
    assert found["batch path, wall"].ratio == pytest.approx(0.9)
    assert found["batch path, wall"].met
    assert found["single call, raw-sync, p50"].ratio == pytest.approx(1.1)
    assert found["single call, raw-sync, p50"].met
    assert found["single call, raw-sync, CPU"].ratio == pytest.approx(480 / 400)


def test_a_process_runs_on_the_cores_it_is_given(tmp_path):
    mine = os.sched_getaffinity(0)
    for cores in ({max(mine)}, None):
        out = tmp_path / f"cores-{cores}"
        command = [sys.executable, "-c", "import os, sys; open(sys.argv[1], 'w').write(str(os.sched_getaffinity(0)))"]
        child = Child([*command, str(out)], log=tmp_path / "log", cores=cores)
        assert child.process.wait(30) == 0
        assert out.read_text() == str(cores or mine)
        assert os.sched_getaffinity(0) == mine


def test_the_floor_answers_as_many_rows_as_were_asked():
    load = loads.Load("nowhere", np.zeros((200, 32), np.float32), rows=64)
    answers = floor.Answers(32, 10)
    reply = queries_pb2.QueryReply.FromString(answers(loads.messages(load)[0]))
    assert list(reply.counts) == [10] * 64
    assert len(reply.ids.integers) == 8 * 640
    load.rows = 1
    assert list(queries_pb2.QueryReply.FromString(answers(loads.messages(load)[0])).counts) == [10]


def test_a_tag_behind_a_message_is_read_as_its_field():
    load = loads.Load("nowhere", np.ones((3, 8), np.float32))
    for tag in (1, 127, 128, 70_000):
        parsed = queries_pb2.QueryRequest.FromString(loads.messages(load)[0] + b"\x70" + loads._varint(tag))
        assert parsed.tag == tag
        assert parsed.collection == "bench"


def test_a_quick_run_measures_every_side():
    options = harness.parse(["--quick", "--inflight", "1,8", "--raw", "raw-sync,stream", "--sdk", "sdk-sync"])
    options.seconds, options.ingest_records = 0.05, 6_000
    found = harness.run(options)
    assert found["about"]["node"]["recall"] >= options.recall
    sides = {row["side"] for row in found["rows"]}
    assert sides == {"index", "embedded", "floor", "node"}
    for row in found["rows"]:
        assert row["qps"] > 0, row
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"], row
    assert {one["name"] for one in found["verdicts"]} >= {"batch path, CPU", "single call, raw-sync, p50"}
    assert {row["how"] for row in found["ingest"]} == {"embedded", "unary", "stream", "sdk"}
    assert all(row["records"] == len(harness.made_set().train) for row in found["ingest"]), found["ingest"]


def test_a_flood_counts_what_is_taken_and_what_is_refused(tmp_path):
    options = argparse.Namespace(records=20_000, dim=32, inflight=[4, 400], queued=8, calls=16, idle=20, seconds=0.3,
                                 soak=0.0)  # fmt: skip
    found = flood.run(options, tmp_path)
    few, many = found["rows"]
    assert found["idle"] == 20
    assert few["accepted_s"] > 0
    assert many["accepted_s"] > 0
    assert set(many["refused"]) == {"RESOURCE_EXHAUSTED"}
    assert many["p50_ms"] <= many["p99_ms"]


def test_peers_ask_for_what_their_environments_hold():
    for name, kind in PEERS.items():
        peer = kind(Path("nowhere"))
        assert peer.name == name
        assert name in CLIENTS
        assert peer.missing() or name == "vecdb"
