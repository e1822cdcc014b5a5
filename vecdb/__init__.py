"""vecdb: an open vector database in Python.

>>> import vecdb
>>> db = vecdb.connect("./data")                                     # doctest: +SKIP
>>> docs = db.create_collection("docs", dim=384, metric="cosine")    # doctest: +SKIP
>>> docs.upsert(ids=ids, vectors=matrix, metadata=rows)              # doctest: +SKIP
>>> docs.query(vector, k=10, filter="year >= 2020")                  # doctest: +SKIP

Names are loaded when first used: ``import vecdb`` itself imports nothing, so that a command line starts at once.
``__init__.pyi`` says to type checkers what they are.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "AsyncCollection": "vecdb.client.async_collection",
    "AsyncDatabase": "vecdb.client.async_database",
    "Backend": "vecdb.client.backend",
    "Collection": "vecdb.client.collection",
    "CollectionSchema": "vecdb.core.schema",
    "Consistency": "vecdb.core.calls",
    "Database": "vecdb.client.database",
    "Description": "vecdb.core.query",
    "F": "vecdb.core.filters",
    "Grant": "vecdb.core.access",
    "Hit": "vecdb.client.results",
    "Hits": "vecdb.client.results",
    "IndexKind": "vecdb.core.schema",
    "IndexSpec": "vecdb.core.schema",
    "Key": "vecdb.core.access",
    "Metric": "vecdb.core.schema",
    "NewKey": "vecdb.core.access",
    "Quantization": "vecdb.core.schema",
    "Record": "vecdb.core.records",
    "Records": "vecdb.client.results",
    "Role": "vecdb.core.access",
    "VecdbError": "vecdb.core.errors",
    "VectorType": "vecdb.core.schema",
    "WriteResult": "vecdb.core.records",
    "connect": "vecdb.client.connect",
    "connect_async": "vecdb.client.async_database",
    "errors": "vecdb.core",
    "limits": "vecdb.core",
}

__all__ = [
    "AsyncCollection", "AsyncDatabase", "Backend", "Collection", "CollectionSchema", "Consistency", "Database",
    "Description", "F", "Grant", "Hit", "Hits", "IndexKind", "IndexSpec", "Key", "Metric", "NewKey", "Quantization",
    "Record", "Records", "Role", "VecdbError", "VectorType", "WriteResult", "__version__", "connect", "connect_async",
    "errors", "limits",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'vecdb' has no attribute {name!r}")
    if home == "vecdb.core":
        value: Any = importlib.import_module(f"{home}.{name}")
    else:
        value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
