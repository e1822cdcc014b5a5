"""``Database``: the collections of one open directory or of a server."""

from types import TracebackType
from typing import Any, Literal, Self

from vecdb.client import making
from vecdb.client.admin import Admin
from vecdb.client.backend import Backend
from vecdb.client.collection import Collection
from vecdb.client.deadlines import check_timeout
from vecdb.client.options import check_consistency
from vecdb.client.session import Session
from vecdb.core.calls import Consistency
from vecdb.core.errors import InvalidArgument
from vecdb.core.layout import Layout
from vecdb.core.schema import IndexSpec, Metric, VectorType, check_name


class Database:
    """An open database; made by :func:`vecdb.connect`, ended by :meth:`close` or as a context manager.

    It may be used by any number of threads at once.

    >>> db.list_collections()
    []
    >>> docs = db.create_collection("docs", dim=3, metric="l2")
    >>> db.collection("docs").dim
    3
    >>> db.drop_collection("docs")
    """

    def __init__(self, backend: Backend, label: str = "in memory", consistency: str | Consistency = "session") -> None:
        self._session = Session(backend, label, check_consistency(consistency) or Consistency.SESSION)

    def create_collection(self, name: str, dim: int, metric: str | Metric = "cosine", *,
                          vector_type: str | VectorType = "float32",
                          index: str | IndexSpec | dict[str, Any] = "auto",
                          indexed_fields: list[str] | tuple[str, ...] | None = None,
                          shards: int | None = None, replication_factor: int | None = None,
                          shard_key: str | None = None, expected_records: int | None = None,
                          if_exists: Literal["error", "ok"] = "error", timeout: float | None = None,
                          **parameters: Any) -> Collection:
        """Make a collection of ``dim``-dimensional vectors and return its handle.

        ``metric``: cosine, dot, l2, or hamming (with ``vector_type="binary"``, whose ``dim`` counts bits).
        ``vector_type`` (or ``dtype``): float32, float16, int8, uint8, binary.
        ``index``: auto, flat, hnsw, ivf_flat, ivf_pq, or an IndexSpec, or a dict of its fields.
        ``parameters``: the fields of :class:`~vecdb.core.schema.IndexSpec` by name: ``m``, ``ef_construction``,
        ``ef_search``, ``quantization`` (auto, none, sq8, sq4, pq, opq, rabitq), ``bits``, ``subspaces``, ``nlist``,
        ``nprobe``, ``oversample``, ``vectors_on_disk``; ``M``, ``efConstruction`` and ``ef`` are taken too.
        ``indexed_fields``: dotted metadata paths to index; None indexes every scalar field.
        Of a cluster: ``shards``: in how many parts (None: by ``expected_records``); ``replication_factor``: on how many
        nodes each (None: as the cluster is set).  ``shard_key``: a metadata field; records of one value of it are on
        one shard, a filter that fixes it asks that shard alone, and every record must have it, a string, a number or a
        boolean.  Ids must be distinct all the same: equal ids of different values are one record or two, as it happens.
        A directory, or a node that is alone, refuses more than one shard or replica, and a shard key.
        ``if_exists="ok"`` returns the collection that is there if its schema is the same.
        Raises InvalidArgument, LimitExceeded, CollectionExists (which says what differs).

        >>> docs = db.create_collection("docs", dim=3, index="hnsw", M=32)
        >>> docs.describe().records
        0
        """
        schema = making.check_schema(name, dim, metric, vector_type, index, indexed_fields, if_exists, parameters)
        layout = Layout(shards, replication_factor, shard_key, expected_records)
        self._session.run(making.create(schema, if_exists == "ok", layout), check_timeout(timeout))
        return Collection(self._session, schema.name)

    def get_or_create_collection(self, name: str, dim: int, metric: str | Metric = "cosine",
                                 **parameters: Any) -> Collection:
        """``create_collection`` with ``if_exists="ok"``."""
        if "if_exists" in parameters:
            raise InvalidArgument("if_exists", "is always 'ok' here", got="if_exists", limit="no such argument")
        return self.create_collection(name, dim, metric, if_exists="ok", **parameters)

    def collection(self, name: str) -> Collection:
        """Return the handle of a collection; raises CollectionNotFound."""
        checked = check_name(name)
        self._session.run(making.find(checked))
        return Collection(self._session, checked)

    def __getitem__(self, name: str) -> Collection:
        return self.collection(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.list_collections()

    def list_collections(self, *, timeout: float | None = None) -> list[str]:
        """The names of the collections, in order."""
        return self._session.run(making.names(), check_timeout(timeout))

    def drop_collection(self, name: str, *, missing_ok: bool = False, timeout: float | None = None) -> None:
        """Delete a collection and its records for good; raises CollectionNotFound unless ``missing_ok``."""
        known = self._session.positions.of(check_name(name))
        self._session.run(making.drop(name, missing_ok), check_timeout(timeout))
        self._session.positions.dropped(name, known)

    def session_token(self, *collections: str) -> str:
        """What this handle has written, as text for another one to go on from (:meth:`use_session_token`).

        ``collections``: those it is to speak of; none: all.  It may be had after :meth:`close`, too.  It says where
        writes are, and nothing of what they hold; it is short (some 40 characters a collection).  Of a directory, or a
        server without a cluster, it says nothing, for there nothing has to be waited for.

        >>> token = db.session_token()
        >>> db.use_session_token(token)
        """
        return self._session.session_token(check_name(name) for name in collections)

    def use_session_token(self, token: str) -> None:
        """Let session reads of this handle see at least the writes that ``token`` speaks of, and its own.

        For who is told of a write by another way: a worker that finds an id in a queue, the next page of a web site.
        Raises InvalidArgument for what is no token.
        """
        self._session.use_session_token(token)

    def jobs(self, name: str | None = None, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """Background jobs of a collection, or of all: ``collection kind state stage done total error``."""
        return self._session.run(making.jobs(name), check_timeout(timeout))

    @property
    def admin(self) -> Admin:
        """The server itself: what it is, and its API keys; Unsupported for a directory."""
        return Admin(self._session)

    @property
    def closed(self) -> bool:
        return self._session.closed

    def close(self) -> None:
        """Wait for running calls, then close; closing again does nothing."""
        self._session.close()

    def close_at_exit(self) -> None:
        """Close when the interpreter ends, if not before; :func:`vecdb.connect` asks for it."""
        self._session.close_at_exit()

    def __enter__(self) -> Self:
        self._session.check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Database {self._session.label}{' (closed)' if self.closed else ''}>"
