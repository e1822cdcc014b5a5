"""The systems that are measured, by name.

A system is one small class: it takes the records once (:meth:`~bench.systems.base.System.build`), is told how hard to
try (:meth:`~bench.systems.base.System.set_effort`), and answers queries with ordinals.  One whose library is missing
raises :class:`~bench.systems.base.MissingError` when it is made, and is left out with a note.
"""

from collections.abc import Callable

from bench.systems import collection, ours, peers
from bench.systems.base import MissingError, Settings, System

SYSTEMS: dict[str, Callable[[Settings], System]] = {
    "vecdb-hnsw": ours.Hnsw,
    "vecdb-hnsw-sq8": ours.HnswSq8,
    "vecdb-hnsw-sq4": ours.HnswSq4,
    "vecdb-hnsw-pq": ours.HnswPq,
    "vecdb-hnsw-opq": ours.HnswOpq,
    "vecdb-hnsw-rabitq": ours.HnswRabitq,
    "vecdb-flat": ours.Flat,
    "vecdb-ivf-flat": ours.IvfFlat,
    "vecdb-ivf-pq": ours.IvfPq,
    "vecdb": collection.Collection,
    "vecdb-sq8": collection.CollectionSq8,
    "vecdb-auto": collection.CollectionAuto,
    "hnswlib": peers.Hnswlib,
    "faiss-hnsw": peers.FaissHnsw,
    "faiss-hnsw-sq8": peers.FaissHnswSq8,
    "faiss-flat": peers.FaissFlat,
    "faiss-ivf-flat": peers.FaissIvfFlat,
    "faiss-ivf-pq": peers.FaissIvfPq,
    "usearch": peers.Usearch,
    "usearch-f16": peers.UsearchF16,
}

__all__ = ["SYSTEMS", "MissingError", "Settings", "System"]
