"""vecdb end to end: a collection on disk, through ``vecdb.connect`` as a user would."""

import shutil
import tempfile
from typing import Any

import numpy as np

from bench.systems.base import MissingError, Settings, System


class Collection(System):
    """Upsert, ``optimize``, query; ids are ordinals.  Building includes every durable write, and opening again."""

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
        with self.connect(self.folder, threads=chosen.build_threads) as database:
            self.fill(database, train)
        self.database = self.connect(self.folder, threads=chosen.threads)
        self.docs = self.database.collection("bench")
        self.count = len(train)

    def fill(self, database: Any, train: np.ndarray) -> None:
        """Every record, durably, and the index built."""
        chosen = self.settings
        docs = database.create_collection(
            "bench",
            chosen.dim,
            chosen.metric,
            index=self.index,
            quantization=self.quantization,
            m=chosen.m,
            ef_construction=chosen.ef_construction,
        )
        docs.upsert(ids=np.arange(len(train)), vectors=train)
        docs.optimize()

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
        return self.docs.describe().details["memory_bytes"]["total"] / self.count

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


class CollectionSq8(Collection):
    """Walked on 8-bit codes, reranked on the full vectors."""

    quantization = "sq8"


class CollectionAuto(Collection):
    """Everything at its default, which says what it chose."""

    index = "auto"
    quantization = "auto"
