"""The bundled data set: whole, distinct, and meaningful."""

import numpy as np
import pytest

from vecdb.datasets import Dataset, load_wordnet


@pytest.fixture(scope="module")
def wordnet() -> Dataset:
    return load_wordnet()


def test_records_and_queries_are_whole(wordnet: Dataset) -> None:
    assert wordnet.vectors.shape == (20_000, 384)
    assert wordnet.queries.shape == (500, 384)
    assert wordnet.vectors.dtype == wordnet.queries.dtype == np.float32
    assert len(wordnet.ids) == len(set(wordnet.ids)) == len(wordnet.metadata) == 20_000
    assert len(wordnet.query_metadata) == 500
    assert {row["id"] for row in wordnet.query_metadata}.isdisjoint(wordnet.ids)
    np.testing.assert_allclose(np.linalg.norm(wordnet.vectors, axis=1), 1, atol=1e-5)
    assert all("id" not in row for row in wordnet.metadata)


def test_every_record_has_the_documented_fields(wordnet: Dataset) -> None:
    kinds = {"text": str, "lemmas": list, "pos": str, "lexname": str, "tag_count": int, "n_lemmas": int}
    for row in wordnet.metadata:
        assert {field: type(value) for field, value in row.items()} == kinds
        assert row["n_lemmas"] == len(row["lemmas"])
    assert {row["pos"] for row in wordnet.metadata} == {"noun", "verb", "adj", "adv"}


def test_rows_and_metadata_are_in_step(wordnet: Dataset) -> None:
    """Neighbours by embedding share the lexicographer's file far more often than chance: the order was kept."""
    nearest = np.argmax(wordnet.queries @ wordnet.vectors.T, axis=1)
    found = [wordnet.metadata[ordinal]["lexname"] for ordinal in nearest]
    asked = [query["lexname"] for query in wordnet.query_metadata]
    assert np.mean([a == b for a, b in zip(found, asked, strict=True)]) > 0.5


def test_two_loads_do_not_share_memory(wordnet: Dataset) -> None:
    again = load_wordnet()
    assert not np.shares_memory(again.vectors, wordnet.vectors)
    again.metadata[0]["pos"] = "changed"
    assert wordnet.metadata[0]["pos"] != "changed"
