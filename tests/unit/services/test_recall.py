"""What the recall sampler picks, compares and may spend; and that a search made careless shows a low figure."""

import threading
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from vecdb.app import open_embedded
from vecdb.core.calls import Call, Stopped
from vecdb.core.errors import CollectionNotFound, StorageError
from vecdb.core.filters import parse
from vecdb.core.query import Cost, Matches, QueryRequest, QueryResult
from vecdb.core.records import UpsertBatch
from vecdb.core.schema import CollectionSchema, IndexKind, IndexSpec, Metric
from vecdb.services.recall import (
    RecallSampler,
    Reservoir,
    found_share,
    measure,
    pause_s,
    selectivity_label,
    was_exact,
)


def request(rows: int = 1, **options) -> QueryRequest:
    return QueryRequest(np.arange(rows * 4, dtype=np.float32).reshape(rows, 4), 3, **options)


def matches(ids, distances) -> Matches:
    return Matches(list(ids), np.array(distances, np.float32))


class Told:
    def __init__(self) -> None:
        self.ratios: list[tuple[str, str, float]] = []
        self.outcomes: list[str] = []

    def recall_measured(self, collection: str, selectivity: str, ratio: float) -> None:
        self.ratios.append((collection, selectivity, ratio))

    def recall_ended(self, outcome: str, cpu_s: float) -> None:
        assert cpu_s >= 0
        self.outcomes.append(outcome)


class Clock:
    def monotonic(self) -> float:
        return 0.0

    wall = monotonic

    def sleep(self, seconds: float) -> None:
        raise AssertionError(seconds)


# --- decisions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("approximate", "exact", "share"), [
    (([1, 2, 3], [1, 2, 3]), ([1, 2, 3], [1, 2, 3]), 1.0),
    (([1, 3, 9], [1, 3, 4]), ([1, 2, 3], [1, 2, 3]), 2 / 3),
    (([], []), ([1, 2], [1, 2]), 0.0),
    (([1, 7], [1, 2]), ([1, 2], [1, 2]), 1.0),  # 7 is as near as 2
    (([1, 7], [1, 2.001]), ([1, 2], [1, 2]), 0.5),
    (([8, 9], [0, 0]), ([1, 2], [0, 0]), 1.0),
    (([1, 2, 3], [1, 2, 3]), ([1], [1]), 1.0),
    (([1, 2, 3], [5, 5, 5]), ([1, 2], [5, 5]), 1.0),
    (([7], [-100.0005]), ([1], [-100.0]), 1.0),  # dot: ties are relative to the size
])
def test_share_found(approximate, exact, share):
    assert found_share(matches(*approximate), matches(*exact)) == pytest.approx(share)


def test_nothing_to_find_is_no_share():
    assert found_share(matches([], []), matches([], [])) is None


@pytest.mark.parametrize(("parts", "label"), [
    ([(1, 10_000)], "<0.1%"), ([(10, 10_000)], "<1%"), ([(999, 10_000)], "<10%"), ([(1000, 10_000)], "<50%"),
    ([(5_000, 10_000)], ">=50%"), ([(10_000, 10_000), (0, 90_000)], "<50%"), ([(0, 0)], "<0.1%"), ([], "<0.1%"),
])
def test_selectivity(parts, label):
    plan = {"segments": [{"matches": found, "records": records} for found, records in parts]}
    assert selectivity_label(request(filter=parse("a == 1")), plan) == label
    assert selectivity_label(request(), plan) == "none"


def test_exact_plans():
    assert was_exact({"segments": [{"strategy": "exact"}, {"strategy": "none"}]})
    assert not was_exact({"segments": [{"strategy": "exact"}, {"strategy": "beam"}]})


def test_neither_more_samples_nor_more_cpu_than_allowed():
    assert pause_s(cpu_s=0.001, took_s=0.5, share=0.02, interval_s=2.0) == pytest.approx(1.5)
    assert pause_s(cpu_s=1.0, took_s=3.0, share=0.02, interval_s=2.0) == pytest.approx(47.0)
    assert pause_s(cpu_s=0.0, took_s=9.0, share=0.02, interval_s=2.0) < 0


def test_every_query_has_the_same_chance():
    picked = np.zeros(10, int)
    random = Random(7)
    for _ in range(3_000):
        reservoir = Reservoir(random)
        for number in range(10):
            reservoir.offer("a", QueryRequest(np.full((1, 2), number, np.float32), 1))
        picked[int(reservoir.take()[1].vectors[0, 0])] += 1
    assert picked.min() > 200  # 300 each, sigma 16
    assert picked.max() < 400


def test_rows_have_the_same_chance_and_are_copies():
    random, seen = Random(7), np.zeros(4, int)
    whole = QueryRequest(np.arange(4, dtype=np.float32).reshape(4, 1), 1, include_metadata=True, include_vectors=True,
                         profile=True)
    for _ in range(400):
        reservoir = Reservoir(random)
        reservoir.offer("a", whole)
        one = reservoir.take()[1]
        assert one.vectors.shape == (1, 1)
        assert one.vectors.base is None
        assert one.explain
        assert (one.include_metadata, one.include_vectors, one.profile) == (False, False, False)
        seen[int(one.vectors[0, 0])] += 1
    assert seen.min() > 60


def test_collections_take_turns():
    reservoir = Reservoir(Random(1))
    taken = []
    for _ in range(6):
        for _ in range(100):
            reservoir.offer("busy", request())
        reservoir.offer("quiet", request())
        reservoir.offer("third", request())
        taken.append(reservoir.take()[0])
    assert sorted(taken[:3]) == sorted(taken[3:]) == ["busy", "quiet", "third"]


def test_what_is_held_is_bounded():
    reservoir = Reservoir(Random(1), collections_max=3)
    for number in range(50):
        reservoir.offer(str(number), request())
    assert [reservoir.take() is not None for _ in range(4)] == [True, True, True, False]
    for number in range(50):
        reservoir.offer(str(number), request())
        reservoir.take()
    assert len(reservoir._turn) <= 3


def test_exact_queries_are_not_picked():
    reservoir = Reservoir(Random(1))
    reservoir.offer("a", request(exact=True))
    reservoir.offer("a", request(rows=0))
    assert reservoir.take() is None


# --- samples --------------------------------------------------------------------------------------


def result(ids, log_index=5, strategy="beam", missing=()) -> QueryResult:
    plan = {"log_index": log_index, "segments": [{"matches": 9, "records": 9, "strategy": strategy}]}
    return QueryResult([matches(ids, range(len(ids)))], plan, missing)


def run_of(as_asked, exactly=None):
    def run(name, asked, call):
        given = exactly if asked.exact else as_asked
        if isinstance(given, Exception):
            raise given
        assert given is not None, "needs no second run"
        return given
    return run


@pytest.mark.parametrize(("as_asked", "exactly", "outcome"), [
    (result([0, 1]), result([0, 1]), ("measured", "none", 1.0)),
    (result([0, 9, 8, 7]), result([0, 1, 2, 3]), ("measured", "none", 0.5)),  # 7 stands at the last distance
    (result([0, 1]), result([0, 1], log_index=6), ("overtaken", "none", 0.0)),
    (result([0, 1], strategy="exact"), None, ("exact", "none", 1.0)),
    (result([], strategy="none"), None, ("empty", "none", 0.0)),
    (result([]), result([]), ("empty", "none", 0.0)),
    (result([0], missing=("segment 3",)), None, ("failed", "", 0.0)),
    (CollectionNotFound("a"), None, ("gone", "", 0.0)),
    (result([0]), StorageError("no"), ("failed", "", 0.0)),
])
def test_outcomes(as_asked, exactly, outcome):
    assert measure(run_of(as_asked, exactly), "a", request(explain=True), Call()) == outcome


def test_a_sample_is_reported_and_paid_for():
    told = Told()
    sampler = RecallSampler(run_of(result([0, 1]), result([0, 1])), told, Clock(), Random(1), per_minute=30,
                            cpu_share=0.02)
    assert sampler.sample() == 2.0
    assert told.outcomes == []
    sampler.offer("a", request(), result([0]), Cost(), Call())
    assert sampler.sample() >= 2.0
    assert told.outcomes == ["measured"]
    assert told.ratios == [("a", "none", 1.0)]


def test_closing_ends_a_running_sample():
    began, told = threading.Event(), Told()

    def run(name, asked, call):
        began.set()
        while call.stop[0] == Stopped.NO:
            pass
        call.check()

    sampler = RecallSampler(run, told, Clock(), Random(1), per_minute=60_000, cpu_share=1.0)
    sampler.offer("a", request(), result([0]), Cost(), Call())
    sampler.start()
    assert began.wait(20)
    sampler.close()
    sampler.close()
    assert told.outcomes == []


def test_an_unforeseen_failure_does_not_end_the_sampler():
    told, counted = Told(), threading.Event()
    original = told.recall_ended

    def ended(outcome, cpu_s):
        original(outcome, cpu_s)
        counted.set()

    told.recall_ended = ended
    sampler = RecallSampler(run_of(RuntimeError("bug")), told, Clock(), Random(1), per_minute=60_000, cpu_share=1.0)
    sampler.offer("a", request(), result([0]), Cost(), Call())
    sampler.start()
    assert counted.wait(20)
    sampler.close()
    assert told.outcomes == ["failed"]


# --- the engine -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """6,000 records of 24 dimensions under a sparse graph, so that a careless search misses much."""
    db = open_embedded(tmp_path_factory.mktemp("recall") / "db", background=False)
    rng = np.random.default_rng(11)
    db.create_collection(CollectionSchema("docs", 24, Metric.L2, index=IndexSpec(IndexKind.HNSW, m=4,
                                                                                 ef_construction=16)))
    metadata = tuple(b'{"x":%d}' % (number % 10) for number in range(6_000))
    db.upsert("docs", UpsertBatch(tuple(range(6_000)), rng.standard_normal((6_000, 24), dtype=np.float32), metadata))
    db.optimize("docs")
    yield db
    db.close()


def sampled(database, **options) -> Told:
    told, rng = Told(), np.random.default_rng(5)
    sampler = RecallSampler(lambda name, asked, call: database.query(name, asked), told, Clock(), Random(2),
                            per_minute=60, cpu_share=1.0)
    for _ in range(20):
        sampler.offer("docs", QueryRequest(rng.standard_normal((1, 24), dtype=np.float32), 10, **options),
                      result([0]), Cost(), Call())
        sampler.sample()
    return told


def average(told: Told) -> float:
    return float(np.mean([ratio for _, _, ratio in told.ratios]))


def test_a_careless_search_shows_a_low_recall_and_a_careful_one_a_high(database):
    careless, careful = sampled(database, ef_search=10), sampled(database, ef_search=150)
    assert careless.outcomes == careful.outcomes == ["measured"] * 20
    assert average(careless) < 0.8
    assert average(careful) > average(careless) + 0.1
    assert {label for _, label, _ in careless.ratios} == {"none"}


def test_filters_are_told_apart_by_what_they_leave(database):
    told = sampled(database, ef_search=200, filter=parse("x < 6"))
    assert {label for _, label, _ in told.ratios} == {">=50%"}
    told = sampled(database, filter=parse("x == 3"))
    assert set(told.outcomes) <= {"measured", "exact"}
    assert {label for _, label, _ in told.ratios} == {"<50%"}


def test_a_write_between_the_runs_drops_the_sample(database):
    rng = np.random.default_rng(5)

    def run(name, asked, call):
        found = database.query(name, asked)
        database.upsert("docs", UpsertBatch((1,), rng.standard_normal((1, 24), dtype=np.float32), (b"{}",)))
        return found

    asked = replace(QueryRequest(rng.standard_normal((1, 24), dtype=np.float32), 10, ef_search=10), explain=True)
    assert measure(run, "docs", asked, Call())[0] == "overtaken"
