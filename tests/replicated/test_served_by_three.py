"""The embedded engine's tests, unchanged, against three nodes, as they run against one."""

import doctest
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecdb
from tests.engine import test_indexes, test_model, test_refusals
from tests.replicated_nodes import Together, connect_to_three
from vecdb.client import collection, database


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vecdb, "connect", connect_to_three)


@pytest.mark.parametrize(("metric", "index", "seed"), [("cosine", "auto", 3)])
def test_engine_equals_model(served: None, tmp_path: Path, metric: str, index: str, seed: int) -> None:
    test_model.test_engine_equals_model(tmp_path, metric, index, seed)


def test_readers_see_whole_moments_while_writers_write(served: None, tmp_path: Path) -> None:
    test_model.test_readers_see_whole_moments_while_writers_write(tmp_path)


@pytest.mark.parametrize(("metric", "vector_type"), [("cosine", "float16"), ("hamming", "binary")])
def test_vector_types(served: None, tmp_path: Path, metric: str, vector_type: str) -> None:
    test_indexes.test_vector_types(tmp_path, metric, vector_type, "flat")


def test_index_through_its_life(served: None, tmp_path: Path) -> None:
    test_indexes.test_index_through_its_life(tmp_path, "hnsw", {"quantization": "sq8"})


def test_range_search(served: None, tmp_path: Path) -> None:
    test_indexes.test_range_search_returns_all_within_and_nothing_beyond(tmp_path)


def test_optimize_under_a_drop(served: None, tmp_path: Path) -> None:
    test_refusals.test_optimize_under_a_drop_says_that_the_collection_is_gone(tmp_path)


class _AnyPlace(doctest.OutputChecker):
    """Where a write stands is another matter here: elections are in the log too."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        places = r"log_index=\d+, shard=\d+|positions=\(.*\)(?=\)$)"
        want, got = (re.sub(places, "log_index=_, shard=_", one, flags=re.MULTILINE) for one in (want, got))
        return super().check_output(want, got, optionflags)


EXAMPLES = [test for module in (collection, database) for test in doctest.DocTestFinder().find(module) if test.examples]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    running = Together(tmp_path_factory.mktemp("examples"), background=False)
    yield running
    running.stop()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name.removeprefix("vecdb.client."))
def test_examples_in_docstrings(nodes: Together, example: doctest.DocTest) -> None:
    with vecdb.connect(nodes.url) as db:
        for name in db.list_collections():
            db.drop_collection(name)
        example.globs.update(db=db, np=np)
        shown: list[str] = []
        result = doctest.DocTestRunner(_AnyPlace()).run(example, out=shown.append)
        assert result.attempted > 0
        assert result.failed == 0, "".join(shown)
