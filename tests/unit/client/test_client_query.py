"""Queries through the facade: arguments, results and their objects."""

from collections.abc import Sequence

import numpy as np
import pytest

from tests.memory_backend import MemoryBackend
from tests.unit.client.conftest import Refused, in_process
from vecdb import F
from vecdb.client import queries
from vecdb.client.collection import Collection
from vecdb.client.database import Database
from vecdb.client.results import Hit, Hits
from vecdb.core.errors import DimensionMismatch, InvalidArgument, InvalidFilter, LimitExceeded, NonFiniteVector
from vecdb.core.query import QueryResult


def test_hits_are_a_sequence_over_columns(docs: Collection) -> None:
    hits = docs.query([0, 0, 0, 0], k=3, include=["metadata", "vector"])
    assert isinstance(hits, Hits)
    assert isinstance(hits, Sequence)
    assert hits.ids == [1, "c", 2]
    assert hits.distances.dtype == hits.scores.dtype == np.float32
    assert hits.distances.tolist() == [0.0, 2.0, 5.0]
    assert hits.scores.tolist() == [0.0, -2.0, -5.0]
    assert not np.signbit(hits.scores[0])
    assert hits.metadata == [{"n": 1, "lang": "en"}, {}, {"n": 2, "lang": "de"}]
    assert hits.vectors.shape == (3, 4)
    assert len(hits) == 3
    assert [hit.id for hit in hits] == hits.ids
    assert hits[-1] == Hit(2, -5.0, 5.0, {"n": 2, "lang": "de"}, hits.vectors[2])
    assert [hit.id for hit in hits[1:]] == ["c", 2]
    assert hits[1:].vectors.shape == (2, 4)
    assert [hit.score for hit in reversed(hits)] == [-5.0, -2.0, 0.0]
    assert (hits.plan, hits.partial, hits.missing) == (None, False, ())
    assert repr(hits) == "<Hits 3 (id: distance) 1: 0, 'c': 2, 2: 5>"
    with pytest.raises(IndexError):
        hits[3]
    plain = docs.query([0, 0, 0, 0], k=1)[0]
    assert (plain.metadata, plain.vector) == (None, None)


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2", "hamming"])
def test_distance_ascends_and_score_descends(db: Database, metric: str) -> None:
    rng = np.random.default_rng(3)
    binary = metric == "hamming"
    x = rng.integers(0, 2, (40, 16)) if binary else rng.normal(size=(40, 16))
    q = rng.integers(0, 2, 16) if binary else rng.normal(size=16)
    docs = db.create_collection("c", 16, metric, vector_type="binary" if binary else "float32")
    docs.upsert(ids=range(40), vectors=x)
    hits = docs.query(q, k=40)
    wanted = {"l2": np.linalg.norm(x - q, axis=1), "dot": -x @ q, "hamming": np.sum(x != q, axis=1),
              "cosine": 1 - x @ q / np.linalg.norm(x, axis=1) / np.linalg.norm(q)}[metric]
    np.testing.assert_allclose(hits.distances, np.sort(wanted), atol=1e-5)
    np.testing.assert_allclose(wanted[hits.ids], np.sort(wanted), atol=1e-5)
    similarity = {"l2": -wanted, "dot": -wanted, "hamming": -wanted, "cosine": 1 - wanted}[metric]
    np.testing.assert_allclose(hits.scores, -np.sort(-similarity), atol=1e-5)
    assert [hit.score for hit in hits] == hits.scores.tolist()
    assert [hit.distance for hit in hits] == hits.distances.tolist()


def test_many_queries_are_a_list(docs: Collection) -> None:
    many = docs.query(np.zeros((3, 4)), k=2)
    assert isinstance(many, list)
    assert [hits.ids for hits in many] == [[1, "c"]] * 3
    assert isinstance(docs.query([[0, 0, 0, 0]]), list)


def test_filters_in_three_forms_and_within(docs: Collection) -> None:
    for where in ("n >= 2", F.n >= 2, {"n": {"$gte": 2}}):
        assert docs.query([0, 0, 0, 0], filter=where).ids == [2]
    assert docs.query([0, 0, 0, 0], within=2.0).ids == [1, "c"]
    assert docs.query([0, 0, 0, 0], within=np.float32(0)).ids == [1]
    assert docs.query([0, 0, 0, 0], 10, "n == 99").ids == []
    assert docs.query([0, 0, 0, 0], k=1, exact=True, explain=True).plan == {"strategy": "exact", "matches": 3}


@in_process
def test_arguments_reach_the_backend(docs: Collection, backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(name: str, request: object, call: object = None) -> QueryResult:
        seen.append(request)
        return QueryResult([], missing=("segment 3",))

    monkeypatch.setattr(backend, "query", spy)
    docs.query([[1, 2, 3, 4]], top_k=np.int64(7), ef=99, nprobe=3, exact=np.True_, include="vectors", within=-1)
    (request,) = seen
    assert (request.k, request.ef_search, request.nprobe, request.exact) == (7, 99, 3, True)
    assert (request.include_vectors, request.include_metadata, request.within) == (True, False, -1.0)


@in_process
def test_a_partial_answer_says_so(docs: Collection, backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    query = backend.query
    monkeypatch.setattr(backend, "query", lambda n, r, call: QueryResult(query(n, r).matches, missing=("segment 3",)))
    hits = docs.query([1, 2, 3, 4])
    assert hits.partial
    assert hits[:1].missing == ("segment 3",)
    assert "partial" in repr(hits)


def test_progress(docs: Collection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(queries, "_REPORTED_ROWS", 2)
    seen: list = []
    many = docs.query(np.zeros((5, 4)), progress=lambda *step: seen.append(step))
    assert len(many) == 5
    assert seen == [("query", 2, 5), ("query", 4, 5), ("query", 5, 5)]
    docs.query(np.zeros((5, 4)), progress=True)
    docs.optimize(progress=True)
    shown = capsys.readouterr()
    assert "query" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(("arguments", "kind", "argument"), [
    ({"vector": [1, 2, 3]}, DimensionMismatch, "vector"), ({"vector": []}, DimensionMismatch, "vector"),
    ({"vector": np.zeros((0, 4))}, InvalidArgument, "vector"), ({"vector": 3}, DimensionMismatch, "vector"),
    ({"vector": np.zeros((1, 1, 4))}, DimensionMismatch, "vector"), ({"vector": None}, InvalidArgument, "vector"),
    ({"vector": "abcd"}, InvalidArgument, "vector"), ({"vector": [1, 2, 3, np.nan]}, NonFiniteVector, "vector"),
    ({"vector": [[1, 2, 3, 4], [1, 2, 3, np.inf]]}, NonFiniteVector, "vector[1]"),
    ({"k": 0}, LimitExceeded, "k"), ({"k": -1}, LimitExceeded, "k"), ({"k": 10_001}, LimitExceeded, "k"),
    ({"k": True}, InvalidArgument, "k"), ({"k": 3.0}, InvalidArgument, "k"), ({"k": None}, InvalidArgument, "k"),
    ({"k": np.zeros(3)}, InvalidArgument, "k"), ({"k": 5, "top_k": 5}, InvalidArgument, "k"),
    ({"vector": np.zeros((1_001, 4)), "k": 10_000}, LimitExceeded, "k"),
    ({"ef_search": -1}, LimitExceeded, "ef_search"), ({"ef_search": 3, "ef": 3}, InvalidArgument, "ef_search"),
    ({"ef": 20_001}, LimitExceeded, "ef_search"), ({"nprobe": "x"}, InvalidArgument, "nprobe"),
    ({"ef_serach": 3}, InvalidArgument, "ef_serach"), ({"filters": "n == 1"}, InvalidArgument, "filters"),
    ({"include": "payload"}, InvalidArgument, "include"), ({"include": ["metdata"]}, InvalidArgument, "include"),
    ({"include": [3]}, InvalidArgument, "include"), ({"include": 3}, InvalidArgument, "include"),
    ({"within": "x"}, InvalidArgument, "within"), ({"within": np.nan}, InvalidArgument, "within"),
    ({"within": True}, InvalidArgument, "within"), ({"within": 10 ** 400}, InvalidArgument, "within"),
    ({"exact": 1}, InvalidArgument, "exact"), ({"explain": "yes"}, InvalidArgument, "explain"),
    ({"progress": 1}, InvalidArgument, "progress"), ({"filter": 3}, InvalidFilter, None),
    ({"filter": {"n": {"$foo": 3}}}, InvalidFilter, None),
])
def test_refusals(docs: Collection, refused: Refused, arguments: dict, kind: type, argument: str) -> None:
    with refused(kind, argument):
        docs.query(**{"vector": [1, 2, 3, 4], **arguments})


def test_messages_help(docs: Collection) -> None:
    for arguments, hint in [({"ef_serach": 3}, "'ef_search'"), ({"filters": 3}, "'filter'"),
                            ({"include": ["metdata"]}, "'metadata'"), ({"topk": 3}, "'top_k'")]:
        with pytest.raises(InvalidArgument, match=f"did you mean {hint}"):
            docs.query([1, 2, 3, 4], **arguments)
    with pytest.raises(InvalidFilter) as info:
        docs.query([1, 2, 3, 4], filter="n >= 3 and and")
    assert info.value.position == 11


def test_vectors_of_a_large_answer_are_refused(db: Database) -> None:
    wide = db.create_collection("wide", dim=32_768, metric="l2")
    wide.upsert(ids=[1], vectors=np.ones((1, 32_768)))
    assert wide.query(np.ones(32_768), k=10_000).ids == [1]
    with pytest.raises(LimitExceeded, match="fetch"):
        wide.query(np.ones(32_768), k=10_000, include=["vector"])
