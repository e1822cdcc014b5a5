"""The loader of the bundled WordNet sample."""

import gzip
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

VECTORS_FILE = "wordnet.npz"
METADATA_FILE = "wordnet.jsonl.gz"


@dataclass(frozen=True, slots=True)
class Dataset:
    """Records and held-out queries of one real data set.

    ``ids``: n distinct strings.  ``vectors``: float32 ``(n, dim)``, rows of length 1.  ``metadata``: n dicts, one a
    record.  ``queries``: float32 ``(q, dim)``, from the same source but not among the records.  ``query_metadata``:
    q dicts, each with the ``id`` of the query beside the fields records have.  ``metric``: the one the embeddings are
    meant for.  The arrays and dicts are the caller's own.
    """

    name: str
    metric: str
    ids: list[str]
    vectors: NDArray[np.float32]
    metadata: list[dict[str, Any]]
    queries: NDArray[np.float32]
    query_metadata: list[dict[str, Any]]


def load_wordnet() -> Dataset:
    """20,000 synsets of WordNet 3.0 and 500 more as queries, 384 dimensions, cosine.

    Metadata of a synset: ``text`` ("lemmas: gloss"), ``lemmas`` (list), ``pos`` (noun, verb, adj, adv), ``lexname``
    (the lexicographer's file, such as ``noun.animal``), ``tag_count`` (occurrences in the tagged corpus), ``n_lemmas``.
    """
    folder = files("vecdb.datasets")
    with (folder / METADATA_FILE).open("rb") as packed, gzip.open(packed) as lines:
        rows: list[dict[str, Any]] = [orjson.loads(line) for line in lines]
    with (folder / VECTORS_FILE).open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        vectors = _unit_rows(arrays["records"])
        queries = _unit_rows(arrays["queries"])
    records, held_out = rows[: len(vectors)], rows[len(vectors) :]
    ids = [row.pop("id") for row in records]
    return Dataset("wordnet", "cosine", ids, vectors, records, queries, held_out)


def _unit_rows(codes: NDArray[np.int8]) -> NDArray[np.float32]:
    """Rows of 8-bit integers as float32 rows of length 1; the length of the row is its scale, so none is stored."""
    rows = codes.astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows
