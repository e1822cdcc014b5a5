"""Hostile arguments of any type to every public call: a VecdbError or an answer, and a refusal changes nothing.

The backend is the pedantic double, so an unchecked value that got through the facade is an AssertionError here.
A wrong *signature* is Python's TypeError, not ours; these calls name only arguments that exist.
"""

import decimal
import fractions
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.memory_backend import MemoryBackend
from vecdb import Database, F
from vecdb.client.collection import Collection
from vecdb.core.errors import VecdbError
from vecdb.core.schema import IndexSpec

QUIET = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


class Odd:
    """Answers every protocol that NumPy or a loop might ask for, badly."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, key: object) -> object:
        raise KeyError(key)

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        raise ValueError("not today")

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


def recursive() -> list:
    inside: list = []
    inside.append(inside)
    return inside


ODDITIES: list[Any] = [
    Odd(), object(), recursive(), F, F.year, F.year >= 3, ..., NotImplemented, print, np, fractions.Fraction(1, 3),
    decimal.Decimal("1.5"), b"bytes", bytearray(b"x"), memoryview(b"abcd"), {1, 2}, frozenset(), 1j, 10 ** 400, -0.0,
    IndexSpec(), np.float64("nan"), np.datetime64("2024-01-01"), np.ma.masked, np.zeros(()), np.zeros((0, 4)),
    np.zeros((2, 4), dtype=object), np.ones((3, 4), dtype=">f4"), np.array(["a", "b"]), np.full((1, 4), np.inf),
    np.ones((1, 4), dtype=complex), np.zeros(2, dtype=[("a", "f4")]), "\ud800", "\0", "x" * 70_000, range(5), slice(3),
    [[1, 2, 3, 4], [1, 2]], [b"\xff"] * 3, {"id": 1, "vector": [1, 2, 3, 4]}, {"year": {"$gte": F}}, {None: None},
]
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=8),
                    st.integers(-2, 40))
NESTED = st.recursive(SCALARS, lambda inner: st.one_of(
    st.lists(inner, max_size=4), st.tuples(inner, inner), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=12)
HOSTILE = st.one_of(st.sampled_from(ODDITIES), NESTED)

NAMES = st.sampled_from(["docs", "bits", "none"])
IDS = st.lists(st.one_of(st.integers(0, 5), st.sampled_from(["a", "b"])), max_size=4)
VECTOR = st.lists(st.floats(-3, 3, width=32), min_size=4, max_size=4)
OBJECT = st.dictionaries(st.sampled_from(["n", "year", "a.b"]), SCALARS, max_size=3)
FILTERS = st.sampled_from(["n >= 1", "year == 2020 or n in [1, 2]", "not n == 1", F.n > 1, {"n": 1}, {}, "", "n ="])
FLAGS = st.booleans()
COUNTS = st.integers(-1, 12)
INCLUDE = st.sampled_from([(), ["metadata"], "vector", ["metadata", "vectors"], ["x"]])

ARGUMENTS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "upsert": {"ids": IDS, "vectors": st.lists(VECTOR, max_size=4), "metadata": st.lists(OBJECT, max_size=4),
               "records": st.lists(st.one_of(st.tuples(st.integers(0, 5), VECTOR), st.tuples(st.text(), VECTOR, OBJECT),
                                             st.fixed_dictionaries({"id": st.integers(), "vector": VECTOR}))),
               "id_column": st.text(), "vector_column": st.text(), "metadata_columns": st.lists(st.text()),
               "batch_size": COUNTS, "progress": st.just(lambda *_: None)},
    "query": {"vector": st.one_of(VECTOR, st.lists(VECTOR, max_size=3)), "k": COUNTS, "filter": FILTERS,
              "include": INCLUDE, "within": st.floats(-1, 9), "ef_search": COUNTS, "nprobe": COUNTS, "exact": FLAGS,
              "explain": FLAGS, "progress": st.just(None), "top_k": COUNTS, "ef": COUNTS},
    "fetch": {"ids": IDS, "include": INCLUDE},
    "get": {"id": st.one_of(st.integers(), st.text()), "include": INCLUDE},
    "delete": {"ids": IDS, "filter": FILTERS, "progress": st.just(None)},
    "update_metadata": {"ids": IDS, "metadata": st.one_of(OBJECT, st.lists(OBJECT, max_size=4)), "filter": FILTERS,
                        "merge": FLAGS, "progress": st.just(None)},
    "scan": {"filter": FILTERS, "include": INCLUDE, "batch_size": COUNTS},
    "scan_batches": {"filter": FILTERS, "include": INCLUDE, "batch_size": COUNTS},
    "count": {"filter": FILTERS},
    "optimize": {"progress": st.just(None)},
}
REQUIRED = {"query": {"vector"}, "fetch": {"ids"}, "get": {"id"}}

CREATE: dict[str, st.SearchStrategy[Any]] = {
    "name": st.one_of(st.sampled_from(["docs", "new"]), st.text(max_size=10)), "dim": COUNTS,
    "metric": st.sampled_from(["cosine", "dot", "l2", "hamming", "euclidean"]),
    "vector_type": st.sampled_from(["float32", "float16", "int8", "binary", "float64"]),
    "index": st.sampled_from(["auto", "hnsw", {"kind": "flat", "m": 3}, IndexSpec(), {"x": 1}]),
    "m": COUNTS, "M": COUNTS, "ef_construction": COUNTS, "quantization": st.sampled_from(["sq8", "none", "x"]),
    "oversample": st.floats(), "bits": COUNTS, "vectors_on_disk": FLAGS, "dtype": st.sampled_from(["int8", np.int8]),
    "indexed_fields": st.lists(st.text(max_size=4), max_size=3), "if_exists": st.sampled_from(["ok", "error"]),
}


def database() -> tuple[MemoryBackend, Database]:
    backend = MemoryBackend()
    db = Database(backend)
    docs = db.create_collection("docs", dim=4)
    docs.upsert(ids=[0, 1, "a"], vectors=np.eye(3, 4), metadata=[{"n": 1}, {"year": 2020}, {}])
    db.create_collection("bits", dim=16, metric="hamming", vector_type="binary").upsert(ids=[1], vectors=[[1, 2]])
    return backend, db


@st.composite
def calls(draw: st.DrawFn, arguments: dict[str, st.SearchStrategy[Any]], required: set[str]) -> dict[str, Any]:
    """A subset of a call's arguments, each as it should be or hostile."""
    chosen = required | set(draw(st.lists(st.sampled_from(sorted(arguments)), max_size=4, unique=True)))
    return {name: draw(HOSTILE if draw(st.integers(0, 3)) == 0 else arguments[name]) for name in sorted(chosen)}


def run(backend: MemoryBackend, call: Any, arguments: dict[str, Any]) -> Any:
    """Call; on a refusal check that it is typed, says what is wrong, and changed nothing."""
    before = backend.state()
    try:
        return call(**arguments)
    except VecdbError as error:
        refusal = error
    assert refusal.code in ("INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "UNIMPLEMENTED")
    assert 0 < len(str(refusal)) < 4_000
    str(refusal).encode("utf-8")  # what cannot be encoded cannot be printed or logged
    assert backend.state() == before, arguments
    return None


def used(answer: Any) -> None:
    """Look at all of a lazy answer."""
    if answer is not None and hasattr(answer, "__iter__") and not isinstance(answer, dict):
        for item in answer:
            repr(item)


@pytest.mark.parametrize("method", sorted(ARGUMENTS))
def test_collection_calls(method: str) -> None:
    backend, db = database()

    @QUIET
    @given(name=NAMES, arguments=calls(ARGUMENTS[method], REQUIRED.get(method, set())))
    def check(name: str, arguments: dict[str, Any]) -> None:
        docs = Collection(db._session, name)
        used(run(backend, getattr(docs, method), arguments))

    check()


def test_create_and_drop() -> None:
    backend, db = database()

    @QUIET
    @given(arguments=calls(CREATE, {"name", "dim"}))
    def check(arguments: dict[str, Any]) -> None:
        made = run(backend, db.create_collection, arguments)
        if made is not None:
            assert made.schema.name in db.list_collections()
            if made.name not in ("docs", "bits"):
                run(backend, db.drop_collection, {"name": made.name})

    check()


@pytest.mark.parametrize("method", ["collection", "drop_collection", "__getitem__", "__contains__"])
@QUIET
@given(value=HOSTILE)
def test_names(method: str, value: Any) -> None:
    backend, db = database()
    run(backend, lambda name: getattr(db, method)(name), {"name": value})


@pytest.mark.filterwarnings("ignore:.*masked element to nan")
@pytest.mark.parametrize("value", ODDITIES, ids=lambda value: type(value).__name__)
def test_every_oddity_in_every_place(value: Any) -> None:
    """What hypothesis may not come to in its budget: each odd value as each argument of each call."""
    for method, arguments in ARGUMENTS.items():
        for name in arguments:
            backend, db = database()
            given_arguments = {"vector": [1, 2, 3, 4], "ids": [1], "id": 1} if method in REQUIRED else {}
            given_arguments = {key: one for key, one in given_arguments.items() if key in REQUIRED.get(method, set())}
            used(run(backend, getattr(db["docs"], method), {**given_arguments, name: value}))
            if method == "upsert" and name != "records":
                whole = {"ids": [7], "vectors": [[1, 2, 3, 4]], "metadata": [{"n": 1}]}
                run(backend, db["docs"].upsert, {**whole, name: value})
            if method == "update_metadata" and name == "metadata":
                run(backend, db["docs"].update_metadata, {"ids": [1], name: value})
    for name in CREATE:
        backend, db = database()
        run(backend, db.create_collection, {"name": "new", "dim": 4, name: value})
    backend, db = database()
    run(backend, db["docs"].upsert, {"records": [(7, value)]})
    run(backend, db["docs"].upsert, {"records": [(value, [1, 2, 3, 4])]})
    run(backend, db["docs"].upsert, {"records": [(7, [1, 2, 3, 4], value)]})
    run(backend, db["docs"].upsert, {"records": [{"id": 7, "vector": [1, 2, 3, 4], "metadata": {"deep": [value]}}]})
    run(backend, db["docs"].upsert, {"records": [value]})
