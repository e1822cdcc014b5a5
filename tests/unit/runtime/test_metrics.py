"""What is counted, under which labels, and that neither names nor failures of others can make it grow or fall over."""

import asyncio
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from vecdb.app import open_embedded
from vecdb.core.calls import Call
from vecdb.core.query import Cost, Description, QueryRequest, QueryResult
from vecdb.core.records import UpsertBatch
from vecdb.core.schema import CollectionSchema, Metric
from vecdb.ports.observer import NullObserver, Observer, Refusal, Watched
from vecdb.runtime.exposition import Exposition, interpreter, publish, read_pages, write_page
from vecdb.runtime.instruments import SECONDS, Names, Tally
from vecdb.runtime.metrics import Metrics
from vecdb.runtime.process import Collections, EventLoopLag, Host

QUERY = "Queries/Query"


def values(*sources, name: str, **labels) -> dict[tuple, float]:
    """Samples of a metric on a page, as another program reads them."""
    _, body = Exposition(sources).text()
    return {tuple(sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()}


def value(*sources, name: str, **labels) -> float:
    (found,) = values(*sources, name=name, **labels).values()
    return found


def call(metrics: Observer, method: str = QUERY, collection: str = "docs", code: str = "OK", sizes=(100, 10)) -> float:
    return metrics.call_ended(method, metrics.call_began(method), collection, code, *sizes)


# --- calls ----------------------------------------------------------------------------------------


def test_a_call_is_counted_by_method_collection_and_code():
    metrics = Metrics()
    seconds = [call(metrics), call(metrics), call(metrics, code="NOT_FOUND")]
    assert value(metrics, name="vecdb_requests_total", method=QUERY, collection="docs", code="OK") == 2
    assert value(metrics, name="vecdb_requests_total", code="NOT_FOUND") == 1
    assert value(metrics, name="vecdb_request_duration_seconds_count", method=QUERY, collection="docs") == 3
    assert value(metrics, name="vecdb_request_duration_seconds_sum") == pytest.approx(sum(seconds))
    assert value(metrics, name="vecdb_request_bytes_total") == 300
    assert value(metrics, name="vecdb_response_bytes_total") == 30


def test_calls_in_flight():
    metrics = Metrics()
    began = [metrics.call_began(QUERY) for _ in range(3)]
    assert value(metrics, name="vecdb_requests_in_flight", method=QUERY) == 3
    for moment in began:
        metrics.call_ended(QUERY, moment, "", "CANCELLED", 0, 0)
    assert value(metrics, name="vecdb_requests_in_flight", method=QUERY) == 0


def test_latencies_fall_into_their_buckets():
    tally = Tally(SECONDS)
    for seconds in (0.00005, 0.0001, 0.00011, 9.9, 10.0, 11.0):
        tally.add(seconds)
    buckets = dict(tally.buckets())
    assert buckets["0.0001"] == 2
    assert buckets["0.00025"] == 3
    assert buckets["5.0"] == 3
    assert buckets["10.0"] == 5
    assert buckets["+Inf"] == 6


def test_names_that_callers_make_up_do_not_grow_memory():
    metrics = Metrics(collections_max=2)
    for number in range(50):
        call(metrics, collection=f"guess-{number}", code="NOT_FOUND")
    assert set(values(metrics, name="vecdb_requests_total")) == {
        (("code", "NOT_FOUND"), ("collection", "_other"), ("method", QUERY))}
    for number in range(50):
        call(metrics, method=f"Nowhere/{number}", collection=f"real-{number}")
    found = values(metrics, name="vecdb_requests_total", code="OK")
    assert {dict(key)["collection"] for key in found} == {"real-0", "real-1", "_other"}
    assert sum(found.values()) == 50
    for number in range(1_000):
        call(metrics, method=f"Nowhere/{number}")
    assert len(values(metrics, name="vecdb_requests_in_flight")) <= 101
    assert sum(values(metrics, name="vecdb_requests_in_flight").values()) == 0


def test_a_dropped_collection_makes_room():
    metrics = Metrics(collections_max=1)
    call(metrics, collection="a")
    metrics.batch_ran("a", 1, (0.0,), 0.001, True)
    metrics.recall_measured("a", "none", 1.0)
    call(metrics, method="Collections/Drop", collection="a")
    assert not any(dict(key).get("collection") == "a" for key in values(metrics, name="vecdb_requests_total"))
    assert values(metrics, name="vecdb_batch_rows_count") == {}
    assert values(metrics, name="vecdb_query_recall_ratio_count") == {}
    call(metrics, collection="b")
    assert value(metrics, name="vecdb_requests_total", method=QUERY, collection="b") == 1


def test_a_refused_drop_forgets_nothing():
    metrics = Metrics()
    call(metrics, collection="a")
    call(metrics, method="Collections/Drop", collection="a", code="PERMISSION_DENIED")
    assert value(metrics, name="vecdb_requests_total", method=QUERY, collection="a") == 1


def test_nothing_is_lost_between_threads():
    metrics = Metrics()

    def work() -> None:
        for _ in range(2_000):
            call(metrics)
            metrics.batch_ran("docs", 2, (0.0, 0.1), 0.01, False)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(metrics, name="vecdb_requests_total") == 8_000
    assert value(metrics, name="vecdb_query_queue_seconds_count") == 16_000
    assert value(metrics, name="vecdb_batch_rows_sum") == 16_000


# --- everything else that is told -----------------------------------------------------------------


def test_batches_and_queries():
    metrics, heard = Metrics(), []
    metrics.listen(lambda *told: heard.append(told))
    metrics.batch_ran("docs", 8, (0.001, 0.002), 0.02, False)
    metrics.batch_ran("docs", 1, (0.0,), 0.0002, True)
    told = ("docs", QueryRequest(np.zeros((1, 2), np.float32), 1), QueryResult([], missing=("segment 1",)),
            Cost(1.0, 2.0, 8, 240, 3_200), Call())  # of which one row in eight is this call's
    metrics.queried(*told)
    assert heard == [told]
    assert value(metrics, name="vecdb_batches_total", mode="thread") == 1
    assert value(metrics, name="vecdb_batches_total", mode="inline") == 1
    assert value(metrics, name="vecdb_batch_calls_sum") == 3
    assert value(metrics, name="vecdb_batch_compute_seconds_sum") == pytest.approx(0.0202)
    assert value(metrics, name="vecdb_query_hops_total") == 30
    assert value(metrics, name="vecdb_query_comparisons_total") == 400
    assert value(metrics, name="vecdb_query_partial_total", collection="docs") == 1


def test_refusals_stand_at_zero_until_one_happens():
    metrics = Metrics()
    assert len(values(metrics, name="vecdb_refusals_total")) == len(Refusal)
    metrics.refused(Refusal.QUEUE)
    assert value(metrics, name="vecdb_refusals_total", reason="queue") == 1
    assert value(metrics, name="vecdb_refusals_total", reason="memory") == 0


def test_recall_jobs_slow_queries_and_log_events():
    metrics = Metrics()
    metrics.recall_measured("docs", "<1%", 0.9)
    metrics.recall_measured("docs", "<1%", 1.0)
    metrics.recall_ended("measured", 0.25)
    metrics.job_ended("seal", "failed", 3.0)
    metrics.slow_query("docs")
    metrics.log_event("warning")
    assert value(metrics, name="vecdb_query_recall_ratio_sum", collection="docs", selectivity="<1%") == 1.9
    assert value(metrics, name="vecdb_query_recall_ratio_bucket", le="0.995") == 1
    assert value(metrics, name="vecdb_recall_samples_total", outcome="measured") == 1
    assert value(metrics, name="vecdb_recall_cpu_seconds_total") == 0.25
    assert value(metrics, name="vecdb_job_duration_seconds_count", kind="seal", outcome="failed") == 1
    assert value(metrics, name="vecdb_slow_queries_total", collection="docs") == 1
    assert value(metrics, name="vecdb_log_events_total", level="warning") == 1


def test_watched_figures_are_read_at_each_look_and_one_that_fails_is_left_out():
    metrics, depth = Metrics(), [3]
    metrics.watch(Watched.QUEUED_ROWS, lambda: depth[0], "queries")
    metrics.watch(Watched.QUEUED_ROWS, lambda: 1 // 0, "broken")
    metrics.watch(Watched.CACHE_HITS, lambda: 7, "filters")
    metrics.watch(Watched.API_KEYS, lambda: 1)
    metrics.watch(Watched.API_KEYS, lambda: 2)
    assert values(metrics, name="vecdb_queue_rows") == {(("queue", "queries"),): 3}
    depth[0] = 5
    assert value(metrics, name="vecdb_queue_rows", queue="queries") == 5
    assert value(metrics, name="vecdb_cache_hits_total", cache="filters") == 7
    assert value(metrics, name="vecdb_api_keys") == 2


def test_nobody_listening_takes_all_the_same_calls():
    null = NullObserver()
    call(null)
    null.batch_ran("docs", 1, (0.0,), 0.1, True)
    null.refused(Refusal.AUTH)
    null.watch(Watched.STREAMS, lambda: 1)
    null.queried("docs", QueryRequest(np.zeros((1, 2), np.float32), 1), QueryResult([]), Cost(), Call())


# --- the engine and the process -------------------------------------------------------------------


def test_an_engines_collections_are_told(tmp_path):
    db, metrics = open_embedded(tmp_path / "db", background=False), Metrics()
    db.watch_jobs(lambda job, seconds: metrics.job_ended(job.kind, job.state, seconds))
    db.create_collection(CollectionSchema("docs", 4, Metric.L2))
    db.upsert("docs", UpsertBatch(tuple(range(10)), np.eye(10, 4, dtype=np.float32), (b"{}",) * 10))
    db.upsert("docs", UpsertBatch((1,), np.ones((1, 4), np.float32), (b"{}",)))
    collections = Collections(db.describe_open, metrics.names, wait_s=30.0)
    assert value(collections, name="vecdb_collection_records", collection="docs") == 10
    assert value(collections, name="vecdb_collection_dead_records", collection="docs") == 1
    assert value(collections, name="vecdb_collection_segments", collection="docs", state="growing") == 1
    assert value(collections, name="vecdb_collection_segments", collection="docs", state="sealed") == 0
    assert value(collections, name="vecdb_collection_disk_bytes", collection="docs", part="rows") > 0
    assert sum(values(collections, name="vecdb_collection_memory_bytes").values()) > 0
    assert value(collections, name="vecdb_collections_open") == 1
    db.close()
    assert db.describe_open() == []


def described(name: str, records: int, **details) -> Description:
    return Description(name, records, {"segments": [], **details})


def test_collections_beyond_the_bound_are_added_up():
    collections = Collections(lambda: [described(str(number), 10) for number in range(5)], Names(2), wait_s=30.0)
    found = values(collections, name="vecdb_collection_records")
    assert sorted(found.values()) == [10, 10, 30]
    assert found[(("collection", "_other"),)] == 30


def test_jobs_show_their_progress():
    jobs = [{"kind": "seal", "state": "running", "done": 1, "total": 4},
            {"kind": "graph", "state": "queued", "done": 0, "total": 0}]
    collections = Collections(lambda: [described("docs", 1, jobs=jobs)], Names(2), wait_s=30.0)
    assert value(collections, name="vecdb_job_progress_ratio", kind="seal") == 0.25
    assert value(collections, name="vecdb_jobs", kind="graph", state="queued") == 1


def test_a_slow_look_at_collections_is_not_waited_for_and_a_failed_one_is_told():
    gate, looks = threading.Event(), []

    def describe_open():
        looks.append(1)
        if len(looks) == 1:
            gate.wait(30)
        if len(looks) == 2:
            raise OSError("the disk went away")
        return [described("docs", 1)]

    collections = Collections(describe_open, Names(2), refresh_s=0.0, wait_s=0.01)
    assert values(collections, name="vecdb_collection_records") == {}
    assert values(collections, name="vecdb_collections_age_seconds") == {}
    gate.set()
    while collections._running is not None:
        time.sleep(0.001)
    patient = Collections(describe_open, Names(2), refresh_s=0.0, wait_s=30.0)
    assert value(patient, name="vecdb_collections_look_failures") == 1
    assert value(patient, name="vecdb_collection_records") == 1
    assert value(patient, name="vecdb_collections_look_failures") == 0


def test_collections_are_not_looked_at_again_at_once():
    looks = []

    def describe_open():
        looks.append(1)
        return []

    collections = Collections(describe_open, Names(2), refresh_s=1e6, wait_s=30.0)
    for _ in range(5):
        list(collections.collect())
    assert len(looks) == 1


def test_host(tmp_path):
    host = Host("1.2.3", tmp_path, 7, {"node": "n1"})
    (labels,) = values(host, name="vecdb_build_info")
    assert dict(labels)["version"] == "1.2.3"
    assert dict(labels)["node"] == "n1"
    assert 0 < value(host, name="vecdb_memory_resident_bytes") <= value(host, name="vecdb_memory_limit_bytes")
    assert value(host, name="vecdb_memory_write_limit_bytes") == 7
    assert value(host, name="vecdb_disk_bytes", kind="free") < value(host, name="vecdb_disk_bytes", kind="total")
    assert values(Host("1", tmp_path / "gone", 7, {}), name="vecdb_disk_bytes") == {}


def test_the_interpreter():
    assert value(*interpreter(), name="process_open_fds") > 0
    assert value(*interpreter(), name="process_resident_memory_bytes") > 0
    assert values(*interpreter(), name="python_gc_collections_total")


def test_the_loops_worst_lag_of_a_minute():
    lag = EventLoopLag()
    assert lag.worst_s() == 0.0
    for at, late in ((0, 0.5), (1, 0.1), (2, 0.2), (3, -0.1)):
        lag.beat(at, late)
    assert lag.worst_s() == 0.5
    lag.beat(61, 0.0)
    assert lag.worst_s() == 0.2
    lag.beat(63.5, 0.05)
    assert lag.worst_s() == 0.05
    for at in range(10_000):
        lag.beat(at / 4, at / 1e6)
    assert len(lag._beats) == 1


def test_the_heartbeat_notices_a_loop_that_is_held_up():
    lag = EventLoopLag()

    async def hold_up() -> None:
        beat = asyncio.create_task(lag.run(0.01))
        await asyncio.sleep(0.03)
        time.sleep(0.2)
        await asyncio.sleep(0.03)
        beat.cancel()

    asyncio.run(hold_up())
    assert lag.worst_s() > 0.1
    assert value(lag, name="vecdb_event_loop_lag_seconds") == pytest.approx(lag.worst_s())


# --- pages ----------------------------------------------------------------------------------------


def test_a_page_as_prometheus_reads_it():
    metrics = Metrics()
    call(metrics)
    kind, body = Exposition([metrics]).text("application/openmetrics-text; version=1.0.0")
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    text = body.decode()
    assert 'vecdb_requests_total{method="Queries/Query",collection="docs",code="OK"} 1.0\n' in text
    assert "# HELP vecdb_requests_total Calls that ended\n# TYPE vecdb_requests_total counter\n" in text
    assert 'vecdb_request_duration_seconds_bucket{method="Queries/Query",collection="docs",le="+Inf"} 1.0\n' in text


def test_a_page_says_what_the_librarys_own_writer_says():
    metrics = Metrics()
    call(metrics, collection='odd "name"\\ of\ntwo lines')
    metrics.watch(Watched.API_KEYS, lambda: float("inf"))
    metrics.watch(Watched.QUEUED_ROWS, lambda: float("nan"), "a")
    metrics.watch(Watched.CACHE_HITS, lambda: 1e22, "b")
    sources = [metrics, Host("1", Path("/"), 0, {}), *interpreter()]
    registry = CollectorRegistry()
    for source in sources[:2]:
        registry.register(source)
    moving = ("process_", "python_", "vecdb_memory", "vecdb_disk")

    def samples(text: bytes):
        return sorted(repr((family.name, family.type, family.documentation, sample.name, sorted(sample.labels.items()),
                            sample.value))
                      for family in text_string_to_metric_families(text.decode()) for sample in family.samples
                      if not family.name.startswith(moving))

    ours, theirs = Exposition(sources).text()[1], generate_latest(registry)
    assert samples(ours) == samples(theirs)
    assert len(samples(ours)) > 30


def test_processes_share_a_page(tmp_path):
    front, engine = Metrics(), Metrics()
    call(front, collection='with "quotes"\\')
    call(engine)
    engine.refused(Refusal.MEMORY)
    for name in ("front-1", "front-2"):
        write_page(tmp_path, name, Exposition([front, *interpreter()], process=name).text()[1])
    _, body = Exposition([engine], process="engine", folder=tmp_path).text()
    text = body.decode()
    families = [family for family in text_string_to_metric_families(text) if family.name == "vecdb_requests"]
    assert len(families) == text.count("# TYPE vecdb_requests_total ") == 1
    assert {sample.labels["process"]: sample.labels["collection"] for sample in families[0].samples} == {
        "front-1": 'with "quotes"\\', "front-2": 'with "quotes"\\', "engine": "docs"}
    assert 'vecdb_refusals_total{reason="memory",process="engine"} 1.0' in text
    assert 'process_open_fds{process="front-2"}' in text
    assert all('process="' in line for line in text.splitlines() if not line.startswith("#"))


def test_pages_left_behind_or_damaged_are_left_out(tmp_path):
    metrics = Metrics()
    call(metrics)
    text = Exposition([metrics], process="x").text()[1]
    write_page(tmp_path, "old", text)
    os.utime(tmp_path / "old.prom", (1, 1))
    write_page(tmp_path, "strange", b"hello\n# HELP\n# HELP a b\n# HELP vecdb_requests_total other\n# TYPE x y\nx 1")
    write_page(tmp_path, "newer", b"# HELP vecdb_requests_total Else\n# TYPE vecdb_requests_total gauge\nz 1\n")
    write_page(tmp_path, "bytes", b"\xff\xfe")
    (tmp_path / "other.tmp").write_bytes(text)
    assert list(read_pages(tmp_path)) == ["newer", "strange"]
    assert Exposition([metrics], folder=tmp_path).text()[1] == Exposition([metrics]).text()[1]
    assert Exposition([], folder=tmp_path / "none").text()[1] == b""


def test_a_page_that_cannot_be_written_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    write_page(tmp_path / "file", "front", b"")
    assert read_pages(tmp_path / "file") == {}


def test_a_front_publishes_until_it_ends(tmp_path):
    metrics = Metrics()
    call(metrics)

    async def run() -> None:
        task = asyncio.create_task(publish(Exposition([metrics], process="front-1"), tmp_path, "front-1", 0.01))
        while not read_pages(tmp_path):
            await asyncio.sleep(0.005)
        assert "vecdb_requests_total" in read_pages(tmp_path)["front-1"]
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(run())
    assert read_pages(tmp_path) == {}


def test_a_lone_query_is_told_at_once_and_counts_like_any_other():
    metrics, heard = Metrics(), []
    metrics.listen(lambda *told: None, heard.append)
    told = SimpleNamespace(method=QUERY, collection="docs", seconds=0.0004, compute_s=0.0002, hops=30,
                           comparisons=400, bytes_in=70, bytes_out=50)
    for _ in range(3):
        metrics.lone_query(told)  # type: ignore[arg-type]
    assert heard == [told] * 3
    assert value(metrics, name="vecdb_requests_total", method=QUERY, collection="docs", code="OK") == 3
    assert value(metrics, name="vecdb_request_duration_seconds_count") == 3
    assert value(metrics, name="vecdb_request_duration_seconds_sum") == pytest.approx(0.0012)
    assert value(metrics, name="vecdb_request_bytes_total") == 210
    assert value(metrics, name="vecdb_response_bytes_total") == 150
    assert value(metrics, name="vecdb_batches_total", mode="inline") == 3
    for name, total in (("batch_rows", 3), ("batch_calls", 3), ("query_queue_seconds", 0)):
        assert value(metrics, name=f"vecdb_{name}_count") == 3
        assert value(metrics, name=f"vecdb_{name}_sum") == total
    assert value(metrics, name="vecdb_batch_compute_seconds_count") == 3
    assert value(metrics, name="vecdb_query_hops_total") == 90
    assert value(metrics, name="vecdb_query_comparisons_total") == 1_200
