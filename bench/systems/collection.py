"""vecdb end to end: a collection on disk, through ``vecdb.connect`` as a user would."""

import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.systems.base import MissingError, Settings, System


class Collection(System):
    """Upsert, ``optimize``, query; ids are ordinals.  Building includes every durable write."""

    index = "hnsw"
    quantization = "none"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        try:
            import vecdb

            self.connect = vecdb.connect
        except ImportError as error:
            raise MissingError(f"vecdb cannot be imported ({error})") from error
        self.effort = settings.k

    def build(self, train: np.ndarray) -> None:
        chosen = self.settings
        self.folder = tempfile.mkdtemp(prefix="vecdb-bench-")
        self.database = self.connect(self.folder)
        self.docs = self.database.create_collection(
            "bench",
            chosen.dim,
            chosen.metric,
            index=self.index,
            quantization=self.quantization,
            m=chosen.m,
            ef_construction=chosen.ef_construction,
        )
        self.docs.upsert(ids=np.arange(len(train)), vectors=train)
        self.docs.optimize()
        self.count = len(train)

    def set_effort(self, effort: int) -> None:
        self.effort = effort

    def search(self, queries: np.ndarray) -> np.ndarray:
        k = self.settings.k
        found = np.full((len(queries), k), -1, np.int64)
        if len(queries) == 1:
            ids = self.docs.query(queries[0], k=k, ef_search=self.effort).ids
            found[0, : len(ids)] = ids
            return found
        for row, hits in enumerate(self.docs.query(queries, k=k, ef_search=self.effort)):
            found[row, : len(hits.ids)] = hits.ids
        return found

    def bytes_per_vector(self) -> float:
        return sum(memory_bytes(self.docs.describe().details)) / self.count

    def params(self) -> dict[str, int | float | str]:
        return super().params() | {"index": self.index, "quantization": self.quantization}

    def warm(self, train: np.ndarray) -> None:
        """A small one first: compiling, or loading what was compiled, is paid once a machine."""
        small = type(self)(self.settings)
        small.build(train[:1000])
        small.search(train[:10])
        small.search(train[:1])
        small.close()

    def close(self) -> None:
        self.database.close()
        shutil.rmtree(self.folder)


def memory_bytes(details: Any) -> Iterator[float]:
    """The figure ``memory_bytes`` of a description, or of its segments where the whole has none."""
    if isinstance(details, dict):
        if isinstance(details.get("memory_bytes"), int | float):
            yield float(details["memory_bytes"])
            return
        details = list(details.values())
    if isinstance(details, list | tuple):
        for value in details:
            yield from memory_bytes(value)


class CollectionSq8(Collection):
    """Walked on 8-bit codes, reranked on the full vectors."""

    quantization = "sq8"


class CollectionAuto(Collection):
    """Everything at its default, which says what it chose."""

    index = "auto"
    quantization = "auto"
