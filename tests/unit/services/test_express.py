"""The short way of a lone query: it answers what the long way answers, or says that it does not."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from vecdb.app import open_embedded
from vecdb.core.calls import Call
from vecdb.core.filters import parse
from vecdb.core.query import QueryRequest, QueryResult
from vecdb.core.records import DeleteIds, UpsertBatch
from vecdb.core.schema import CollectionSchema, Quantization
from vecdb.core.vectors import check_queries, check_vectors
from vecdb.ports.observer import LoneQuery, NullObserver
from vecdb.runtime.clock import SystemClock
from vecdb.services import express as rooms
from vecdb.services.express import Express
from vecdb.services.node import LocalNode, NodeLimits

COUNT, DIM, K = 1_500, 12, 5
METRICS = ("cosine", "l2", "dot")


class Told(NullObserver):
    def __init__(self) -> None:
        self.lone: list[tuple[str, str, int, int]] = []
        self.queried_in_full: list[QueryResult] = []
        self.ended: list[str] = []

    def lone_query(self, told: LoneQuery) -> None:
        self.lone.append((told.method, told.collection, told.bytes_in, told.bytes_out))
        assert told.compute_s > 0
        assert told.hops > 0
        assert told.comparisons > told.hops

    def queried(self, collection, request, result, cost, call):  # type: ignore[no-untyped-def]
        self.queried_in_full.append(result)

    def call_ended(self, method, began, collection, code, bytes_in, bytes_out):  # type: ignore[no-untyped-def]
        self.ended.append(method)
        return 0.0


def schema_of(name: str, metric: str, quantization: str) -> CollectionSchema:
    schema = CollectionSchema(name, DIM, metric)  # type: ignore[arg-type]
    spec = schema.index
    kind = type(spec.kind)("hnsw")
    return CollectionSchema(name, DIM, metric, index=type(spec)(  # type: ignore[arg-type]
        kind=kind, m=8, ef_construction=40, quantization=Quantization(quantization)))


class Bench:
    """A node over one sealed collection for each metric, walked on codes and on rows."""

    def __init__(self, folder: Any) -> None:
        self.random = np.random.default_rng(5)
        self.database: Any = open_embedded(folder, threads=1, background=False)
        self.told = Told()
        self.schemas: dict[str, CollectionSchema] = {}
        for metric in METRICS:
            for quantization in ("sq8", "none"):
                self.add(schema_of(f"{metric}-{quantization}", metric, quantization))
        self.node = LocalNode(self.database, SystemClock(), self.told, NodeLimits(threads=1), lambda: 0)
        self.node.batcher.alone = lambda: True

    def add(self, schema: CollectionSchema, ids: Callable[[int], Any] = lambda i: 3 * i + 1) -> None:
        self.schemas[schema.name] = schema
        self.database.create_collection(schema)
        rows = self.random.standard_normal((COUNT, DIM)).astype(np.float32)
        self.database.upsert(schema.name, UpsertBatch(tuple(map(ids, range(COUNT))), check_vectors(schema, rows),
                                                      (b"{}",) * COUNT))
        self.database.optimize(schema.name)

    def request(self, name: str, vector: Any = None, **options: Any) -> QueryRequest:
        given = self.random.standard_normal(DIM).astype(np.float32) if vector is None else vector
        return QueryRequest(check_queries(self.schemas[name], given)[0], options.pop("k", K),
                            ef_search=options.pop("ef_search", 10), **options)

    def long(self, name: str, request: QueryRequest) -> QueryResult:
        return asyncio.run(self.node.query(name, request, Call()))

    def answer(self, short: Express, data: bytes) -> tuple[bytes, bytes] | None:
        """Asked as if such queries had been quick: how long they take on a busy machine is not tested here."""
        short._lane.row_s = 1e-4
        return short.answer(data)

    def short(self, name: str, normalized: bool = False, **options: Any) -> Express | None:
        return self.node.express(name, self.request(name, **options), normalized)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("express"))
    yield made
    asyncio.run(made.node.close())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("quantization", ["sq8", "none"])
def test_it_finds_what_the_long_way_finds(bench: Bench, metric: str, quantization: str) -> None:
    name = f"{metric}-{quantization}"
    short = bench.short(name)
    assert short is not None
    for scale in (1.0, 1e-3, 40.0):
        vector = (scale * bench.random.standard_normal(DIM)).astype(np.float32)
        found = bench.answer(short, vector.tobytes())
        assert found is not None
        expected = bench.long(name, bench.request(name, vector)).matches[0]
        assert np.frombuffer(found[0], np.int64).tolist() == expected.ids
        np.testing.assert_allclose(np.frombuffer(found[1], np.float32), expected.distances, rtol=1e-6, atol=1e-6)


def test_vectors_that_are_said_to_be_normalized_keep_their_bits(bench: Bench) -> None:
    short = bench.short("cosine-sq8", normalized=True)
    assert short is not None
    request = bench.request("cosine-sq8")
    found = bench.answer(short, request.vectors.tobytes())
    expected = bench.long("cosine-sq8", request).matches[0]
    assert found == (np.array(expected.ids, np.int64).tobytes(), expected.distances.tobytes())
    assert bench.answer(short, (2 * request.vectors).tobytes()) is None  # the long way says that it is not


@pytest.mark.parametrize("metric", METRICS)
def test_odd_vectors_go_the_long_way(bench: Bench, metric: str) -> None:
    short = bench.short(f"{metric}-sq8")
    assert short is not None
    vector = np.ones(DIM, np.float32)
    assert bench.answer(short, vector.tobytes()) is not None
    for wrong in (np.nan, np.inf, -np.inf, 3e38 if metric != "cosine" else np.nan):
        vector[3] = wrong
        assert bench.answer(short, vector.tobytes()) is None
    if metric == "cosine":
        assert bench.answer(short, bytes(4 * DIM)) is None
        tiny = np.full(DIM, 1e-42, np.float32)
        assert np.isfinite(np.frombuffer(bench.answer(short, tiny.tobytes())[1], np.float32)).all()  # type: ignore[index]
    assert bench.answer(short, np.ones(DIM, np.float32).tobytes()) is not None


def test_another_use_of_the_same_searcher_leaves_nothing_behind(bench: Bench) -> None:
    name = "l2-sq8"
    first, second = bench.short(name), bench.short(name, k=3, ef_search=30)
    assert first is not None
    assert second is not None
    data = bench.random.standard_normal(DIM).astype(np.float32)
    alone = bench.answer(first, data.tobytes())
    assert len(bench.answer(second, data.tobytes())[0]) == 8 * 3  # type: ignore[index]
    filtered = QueryRequest(data[None, :], K, ef_search=10, filter=parse("x == 1"))
    assert bench.long(name, filtered).matches[0].ids == []
    bench.long(name, bench.request(name, np.stack([data] * 3)))
    assert bench.answer(first, data.tobytes()) == alone


@pytest.mark.parametrize("options", [
    {"exact": True}, {"include_metadata": True}, {"include_vectors": True}, {"explain": True}, {"profile": True},
    {"within": 2.0}, {"filter": parse("x == 1")}, {"k": 300}, {"vector": np.ones((2, DIM), np.float32)},
])  # fmt: skip
def test_what_else_a_query_may_want_has_no_short_way(bench: Bench, options: dict[str, Any]) -> None:
    assert bench.short("l2-sq8", **options) is None


def test_strings_as_ids_have_none(bench: Bench) -> None:
    bench.add(schema_of("strings", "l2", "sq8"), ids=lambda i: f"id{i}")
    assert bench.short("strings") is None


def test_it_ends_with_a_write_and_with_the_collection(bench: Bench) -> None:
    name = "changing"
    bench.add(schema_of(name, "l2", "sq8"))
    short = bench.short(name)
    data = np.ones(DIM, np.float32).tobytes()
    assert short is not None
    assert bench.answer(short, data) is not None
    assert not short.stale
    bench.database.delete(name, DeleteIds((1,)))
    assert short.stale
    assert bench.answer(short, data) is None
    assert bench.node.express(name, bench.request(name), False) is None  # not all of the segment lives
    bench.database.optimize(name)
    again = bench.short(name)
    assert again is not None
    assert bench.answer(again, data) is not None
    bench.database.drop_collection(name)
    assert bench.answer(again, data) is None
    assert bench.node.express("nowhere", bench.request("l2-sq8"), False) is None


def test_it_waits_for_nobody_and_goes_before_nobody(bench: Bench) -> None:
    short = bench.short("dot-sq8")
    data = np.ones(DIM, np.float32).tobytes()
    assert short is not None
    bench.node.batcher.alone = lambda: False
    try:
        assert bench.answer(short, data) is None
    finally:
        bench.node.batcher.alone = lambda: True
    assert bench.answer(short, data) is not None


def test_the_queue_is_asked_how_long_such_queries_take(bench: Bench) -> None:
    fresh = bench.node.express("dot-none", bench.request("dot-none", ef_search=11), False)
    assert fresh is not None
    assert fresh.answer(np.ones(DIM, np.float32).tobytes()) is None  # nobody knows yet


def test_observers_hear_of_it_when_the_reply_is_on_its_way(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    short = bench.short("cosine-none")
    vector = np.full(DIM, 2.0, np.float32)
    assert short is not None
    monkeypatch.setattr(bench.node.batcher, "runs_here", lambda lane: True)

    async def ask(times: int = 1) -> tuple[bytes, bytes]:
        for size in range(times):
            found = bench.answer(short, vector.tobytes())
            assert found is not None
            before = len(bench.told.lone), len(bench.told.ended)
            short.tell("Queries/Query", 1.0, (80 + size, 60), found, Call)
            assert (len(bench.told.lone), len(bench.told.ended)) == before
        await asyncio.sleep(0)
        return found

    bench.told.lone.clear()
    asyncio.run(ask())
    assert bench.told.lone == [("Queries/Query", "cosine-none", 80, 60)]
    assert short.seconds > 0
    assert np.allclose(np.linalg.norm(short.request().vectors), 1.0)
    asyncio.run(ask(3))  # each once, although the next one came first
    assert [told[2] for told in bench.told.lone] == [80, 80, 81, 82]
    bench.told.queried_in_full.clear()
    monkeypatch.setattr(rooms, "INLINE_S", 0.0)  # every query is slow
    found = asyncio.run(ask())
    assert bench.told.queried_in_full[0].matches[0].ids == np.frombuffer(found[0], np.int64).tolist()
    assert len(bench.told.lone) == 4
    assert bench.told.ended[-1] == "Queries/Query"
