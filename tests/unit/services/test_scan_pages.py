"""Pages of a scan are bounded by bytes as well as by records."""

from pathlib import Path

import numpy as np
import pytest

import vecdb
from vecdb.services import reads


def test_a_page_ends_where_its_records_grow_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "PAGE_BYTES", 10_000)
    with vecdb.connect(tmp_path) as db:
        docs = db.create_collection("docs", dim=4, metric="l2")
        docs.upsert(ids=range(600), vectors=np.ones((600, 4)),
                    metadata=[{"text": "x" * (i % 7) * 500} for i in range(600)])
        pages = list(docs.scan_batches(batch_size=500))
        assert [one for page in pages for one in page.ids] == list(range(600))
        assert max(len(page) for page in pages) < 30
        assert all(page.ids for page in pages)
        vectors = list(docs.scan_batches(batch_size=500, include=["vector"]))
        assert sum(len(page) for page in vectors) == 600


def test_one_record_larger_than_a_page_is_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "PAGE_BYTES", 100)
    with vecdb.connect(tmp_path) as db:
        docs = db.create_collection("docs", dim=4, metric="l2")
        docs.upsert(ids=[1, 2, 3], vectors=np.ones((3, 4)), metadata=[{"text": "x" * 1_000}] * 3)
        assert [page.ids for page in docs.scan_batches()] == [[1], [2], [3]]
