"""The embedded engine's tests, unchanged, against three nodes whose collections have three shards."""

import doctest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecdb
from tests.engine import test_indexes, test_model, test_refusals
from tests.replicated.test_served_by_three import EXAMPLES, _AnyPlace
from tests.replicated_nodes import Together, connect_to_shards
from vecdb.client.database import Database


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vecdb, "connect", connect_to_shards)


@pytest.mark.parametrize(("metric", "index", "seed"), [("cosine", "auto", 3)])
def test_engine_equals_model(served: None, tmp_path: Path, metric: str, index: str, seed: int) -> None:
    test_model.test_engine_equals_model(tmp_path, metric, index, seed)


@pytest.mark.parametrize(("metric", "vector_type"), [("cosine", "float16"), ("hamming", "binary")])
def test_vector_types(served: None, tmp_path: Path, metric: str, vector_type: str) -> None:
    test_indexes.test_vector_types(tmp_path, metric, vector_type, "flat")


def test_range_search(served: None, tmp_path: Path) -> None:
    test_indexes.test_range_search_returns_all_within_and_nothing_beyond(tmp_path)


def test_optimize_under_a_drop(served: None, tmp_path: Path) -> None:
    test_refusals.test_optimize_under_a_drop_says_that_the_collection_is_gone(tmp_path)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Together]:
    running = Together(tmp_path_factory.mktemp("examples"), background=False)
    yield running
    running.stop()


class _Sharded(Database):
    """A database whose collections have three shards unless somebody says otherwise."""

    def create_collection(self, *args: Any, **more: Any) -> Any:
        return super().create_collection(*args, **{"shards": 3, **more})


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name.removeprefix("vecdb.client."))
def test_examples_in_docstrings(nodes: Together, example: doctest.DocTest) -> None:
    with vecdb.connect(nodes.url) as db:
        db.__class__ = _Sharded
        for name in db.list_collections():
            db.drop_collection(name)
        example.globs.update(db=db, np=np)
        shown: list[str] = []
        result = doctest.DocTestRunner(_AnyPlace()).run(example, out=shown.append)
        assert result.attempted > 0
        assert result.failed == 0, "".join(shown)
