"""Fetch, delete, update, scan, count and describe."""

import itertools

import numpy as np
import pytest

from tests.memory_backend import MemoryBackend
from tests.unit.client.conftest import Refused, in_process
from vecdb import F
from vecdb.client import ingest, writing
from vecdb.client.collection import Collection
from vecdb.client.database import Database
from vecdb.core.errors import DataCorrupted, InvalidArgument, InvalidFilter, InvalidId, InvalidMetadata, LimitExceeded
from vecdb.core.filters import Everything
from vecdb.core.query import ScanPage, ScanRequest
from vecdb.core.records import WriteResult


def test_fetch_gives_what_exists_in_the_order_asked(docs: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    records = docs.fetch(["c", 99, 2, "c"])
    assert [record.id for record in records] == ["c", 2, "c"]
    assert records[1].metadata == {"n": 2, "lang": "de"}
    assert records[1].vector.tolist() == [3, 4, 0, 0]
    bare = docs.fetch(np.array([2]), include=())[0]
    assert (bare.metadata, bare.vector) == ({}, None)
    assert docs.fetch([]) == []
    assert docs.fetch(iter([1]), include="vector")[0].metadata == {}
    assert docs.get("c").id == "c"
    assert docs.get("x") is None
    assert docs.get(np.int64(1), include=None).vector is None
    monkeypatch.setattr(writing, "DEFAULT_BATCH_RECORDS", 2)
    assert [record.id for record in docs.fetch([1, 2, 99, "c", 1])] == [1, 2, "c", 1]


def test_delete_by_ids_and_by_filter(docs: Collection) -> None:
    seen: list = []
    result = docs.delete(ids=[1, 1, 99], progress=lambda *step: seen.append(step))
    assert (result.deleted, result.missing) == (1, 1)
    assert seen == [("delete", 2, 2)]
    assert docs.delete(ids=[]).deleted == 0
    assert docs.delete(["c"]).deleted == 1
    assert docs.delete(filter=F.lang == "de").deleted == 1
    assert len(docs) == 0


def test_every_record_is_meant_only_by_saying_true(docs: Collection, refused: Refused) -> None:
    for forgotten in ("", {}, {"$and": []}, Everything()):
        with refused(InvalidFilter, "filter"):
            docs.delete(filter=forgotten)
    assert docs.update_metadata(filter="true", metadata={"seen": 1}).updated == 3
    assert docs.delete(filter="true").deleted == 3


@in_process
def test_updates_are_cut_by_the_bytes_of_the_vectors_they_rewrite(db: Database, backend: MemoryBackend,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    dim = 32_768
    most = (64 << 20) // (4 * dim)
    wide = db.create_collection("wide", dim=dim, metric="l2")
    sizes = []
    monkeypatch.setattr(backend, "update_metadata", lambda name, update, call: (
        sizes.append(len(update.ids)), WriteResult(updated=len(update.ids)))[1])
    assert wide.update_metadata(ids=range(2 * most + 3), metadata={"a": 1}).updated == 2 * most + 3
    assert sizes == [most, most, 3]


class Damaged(MemoryBackend):
    """Raises as the engine does where vectors of ``lost`` records are wanted."""

    lost: frozenset = frozenset()

    def _check(self, ids: list) -> None:
        found = tuple(one for one in ids if one in self.lost)
        if found:
            raise DataCorrupted(f"the vectors of {len(found)} records are damaged on disk", path="x", ids=found)

    def scan(self, name: str, request: ScanRequest, call: object = None) -> ScanPage:
        page = super().scan(name, request)
        if request.include_vectors:
            self._check(page.ids)
        return page

    def fetch(self, name, ids, *, include_metadata=True, include_vectors=True, call=None):
        if include_vectors:
            self._check(ids)
        return super().fetch(name, ids, include_metadata=include_metadata, include_vectors=include_vectors)


def test_a_scan_reads_around_damaged_vectors() -> None:
    backend = Damaged()
    docs = Database(backend).create_collection("docs", dim=2, metric="l2")
    docs.upsert((n, [n, 0], {"n": n}) for n in range(20))
    backend.lost = frozenset((3, 4, 12, 15, 16, 17))
    with pytest.raises(DataCorrupted) as caught:
        list(docs.scan(include=["vector"], batch_size=3))
    assert caught.value.fields["ids"] == (3, 4)
    pages = list(docs.scan_batches("n >= 1", include=["metadata", "vector"], batch_size=3, on_damage="skip"))
    good = [n for n in range(1, 20) if n not in backend.lost]
    assert [identity for page in pages for identity in page.ids] == good
    assert [row[0] for page in pages for row in page.vectors] == good
    assert [row["n"] for page in pages for row in page.metadata] == good
    assert [identity for page in pages for identity in page.damaged] == sorted(backend.lost)
    assert [record.id for record in docs.scan(include=["vector"], batch_size=3, on_damage="skip")] == [0, *good]
    assert len(list(docs.scan(include=["metadata"]))) == 20
    backend.lost = frozenset(range(20))
    (page,) = docs.scan_batches(include="vector", on_damage="skip")
    assert (page.ids, page.metadata, page.vectors.shape, len(page.damaged)) == ([], None, (0, 2), 20)
    with pytest.raises(InvalidArgument, match="on_damage"):
        docs.scan(on_damage="ignore")


def test_update_metadata(docs: Collection) -> None:
    result = docs.update_metadata(ids=[1, 99], metadata={"n": None, "x": [1]})
    assert (result.updated, result.missing) == (1, 1)
    assert docs.get(1).metadata == {"lang": "en", "x": [1]}
    docs.update_metadata(["c", 2], iter([{"a": 1}, {"a": 2}]), merge=False)
    assert [record.metadata for record in docs.fetch(["c", 2])] == [{"a": 1}, {"a": 2}]
    assert docs.get(2).vector.tolist() == [3, 4, 0, 0]
    docs.update_metadata(ids=[1, 2, 1], metadata=[{"p": 1, "q": 1}, {"p": 2}, {"p": 3}])
    assert docs.get(1).metadata == {"lang": "en", "x": [1], "p": 3, "q": 1}
    assert docs.update_metadata(ids=[], metadata={}).updated == 0


def test_update_by_filter_ends_though_records_still_match(docs: Collection) -> None:
    result = docs.update_metadata(filter={"n": {"$gte": 1}}, metadata={"seen": True})
    assert result.updated == 2
    assert docs.count(F.seen == True) == 2  # noqa: E712
    assert docs.get("c").metadata == {}


@pytest.mark.parametrize(("method", "arguments", "kind", "argument"), [
    ("delete", {}, InvalidArgument, "ids"), ("delete", {"ids": [1], "filter": "n == 1"}, InvalidArgument, "ids"),
    ("delete", {"filter": ""}, InvalidFilter, "filter"), ("delete", {"filter": {}}, InvalidFilter, "filter"),
    ("delete", {"filter": Everything()}, InvalidFilter, "filter"), ("delete", {"ids": "c"}, InvalidId, "ids"),
    ("delete", {"ids": [1, None]}, InvalidId, "ids[1]"), ("delete", {"ids": 5}, InvalidId, "ids"),
    ("delete", {"filter": "n =="}, InvalidFilter, None),
    ("delete", {"ids": [1], "progress": 5}, InvalidArgument, "progress"),
    ("fetch", {"ids": "c"}, InvalidId, "ids"), ("fetch", {"ids": None}, InvalidId, "ids"),
    ("fetch", {"ids": [1], "include": ["x"]}, InvalidArgument, "include"),
    ("fetch", {"ids": np.zeros((2, 2), int)}, InvalidId, "ids"), ("get", {"id": [1]}, InvalidId, "ids"),
    ("update_metadata", {"metadata": {}}, InvalidArgument, "ids"),
    ("update_metadata", {"ids": [1], "filter": "n == 1", "metadata": {}}, InvalidArgument, "ids"),
    ("update_metadata", {"ids": [1]}, InvalidMetadata, "metadata"),
    ("update_metadata", {"ids": [1], "metadata": [{}, {}]}, InvalidArgument, "metadata"),
    ("update_metadata", {"ids": [1], "metadata": itertools.repeat({})}, InvalidArgument, "metadata"),
    ("update_metadata", {"ids": [1], "metadata": [3]}, InvalidMetadata, "metadata[0]"),
    ("update_metadata", {"ids": [1], "metadata": {"a": np.nan}}, InvalidMetadata, "metadata.a"),
    ("update_metadata", {"ids": [1], "metadata": {}, "merge": 1}, InvalidArgument, "merge"),
    ("update_metadata", {"filter": "n == 1", "metadata": [{}]}, InvalidMetadata, "metadata"),
    ("update_metadata", {"filter": "", "metadata": {}}, InvalidFilter, "filter"),
    ("scan", {"batch_size": 0}, LimitExceeded, "batch_size"), ("scan", {"include": "x"}, InvalidArgument, "include"),
    ("scan", {"filter": "(("}, InvalidFilter, None),
    ("scan_batches", {"batch_size": 1.5}, InvalidArgument, "batch_size"),
    ("count", {"filter": "n = = 3"}, InvalidFilter, None), ("optimize", {"progress": 0}, InvalidArgument, "progress"),
])
def test_refusals(docs: Collection, refused: Refused, method: str, arguments: dict, kind: type, argument: str) -> None:
    with refused(kind, argument):
        getattr(docs, method)(**arguments)


def test_endless_ids_are_refused(docs: Collection, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "MAX_CALL_IDS", 1_000)
    with refused(LimitExceeded, "ids"):
        docs.delete(ids=itertools.count())
    assert docs.fetch(range(1_000))[0].id == 1


def test_a_patch_may_not_grow_a_record_over_the_limit(docs: Collection, refused: Refused) -> None:
    docs.update_metadata(ids=[1], metadata={"a": "x" * 40_000})
    with refused(InvalidMetadata, "metadata[1]"):
        docs.update_metadata(ids=[2, 1], metadata={"b": "x" * 40_000})


def test_scan_is_lazy_and_stable(docs: Collection, backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    docs.upsert((n, [n, 0, 0, 0], {"n": n}) for n in range(100, 110))
    pages = []
    scan = backend.scan

    def spy(name: str, request: ScanRequest, call: object = None) -> ScanPage:
        pages.append(request.after)
        return scan(name, request)

    monkeypatch.setattr(backend, "scan", spy)
    records = docs.scan(batch_size=4)
    assert pages == []
    assert next(records).id == 1
    assert len(pages) == 1
    docs.delete(ids=[109])
    docs.upsert(ids=[200], vectors=[[1, 1, 1, 1]])
    assert [record.id for record in records] == [2, "c", *range(100, 109), 200]
    assert len(pages) == 4
    batches = list(docs.scan_batches(filter="n >= 105", include=["vector"], batch_size=3))
    assert [batch.ids for batch in batches] == [[105, 106, 107], [108]]
    assert batches[0].metadata is None
    assert batches[0].vectors[:, 0].tolist() == [105, 106, 107]
    assert batches[0][1].vector[0] == 106
    assert [record.id for record in batches[0][1:]] == [106, 107]
    assert len(batches[0]) == 3


def test_count_and_describe(docs: Collection) -> None:
    assert docs.count() == len(docs) == 3
    assert docs.count("n > 1") == 1
    assert docs.describe().records == docs.optimize().records == 3
