from vecdb.client.async_collection import AsyncCollection
from vecdb.client.async_database import AsyncDatabase, connect_async
from vecdb.client.backend import Backend
from vecdb.client.collection import Collection
from vecdb.client.connect import connect
from vecdb.client.database import Database
from vecdb.client.results import Hit, Hits, Records
from vecdb.core import errors, limits
from vecdb.core.access import Grant, Key, NewKey, Role
from vecdb.core.calls import Consistency
from vecdb.core.errors import VecdbError
from vecdb.core.filters import F
from vecdb.core.query import Description
from vecdb.core.records import Record, WriteResult
from vecdb.core.schema import CollectionSchema, IndexKind, IndexSpec, Metric, Quantization, VectorType

__version__: str

__all__ = [
    "AsyncCollection", "AsyncDatabase", "Backend", "Collection", "CollectionSchema", "Consistency", "Database",
    "Description", "F", "Grant", "Hit", "Hits", "IndexKind", "IndexSpec", "Key", "Metric", "NewKey", "Quantization",
    "Record", "Records", "Role", "VecdbError", "VectorType", "WriteResult", "__version__", "connect", "connect_async",
    "errors", "limits",
]
