"""``Database``: the collections of one open directory (or, later, of a server)."""

from types import TracebackType
from typing import Any, Literal, Self

from vecdb.client.backend import Backend
from vecdb.client.collection import Collection
from vecdb.client.options import (
    CREATE_ALIASES,
    INDEX_NAMES,
    check_indexed_fields,
    check_int,
    check_metric,
    check_text,
    check_vector_type,
    differences,
    index_spec,
    resolve,
)
from vecdb.client.session import Session
from vecdb.core.errors import CollectionExists, CollectionNotFound, InvalidArgument
from vecdb.core.limits import MAX_DIM
from vecdb.core.schema import CollectionSchema, IndexSpec, Metric, VectorType, check_name

_INDEX_PARAMETERS = tuple(name for name in INDEX_NAMES if name != "kind")


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

    def __init__(self, backend: Backend, label: str = "in memory") -> None:
        self._session = Session(backend, label)

    def create_collection(self, name: str, dim: int, metric: str | Metric = "cosine", *,
                          vector_type: str | VectorType = "float32",
                          index: str | IndexSpec | dict[str, Any] = "auto",
                          indexed_fields: list[str] | tuple[str, ...] | None = None,
                          if_exists: Literal["error", "ok"] = "error", **parameters: Any) -> Collection:
        """Make a collection of ``dim``-dimensional vectors and return its handle.

        ``metric``: cosine, dot, l2, or hamming (with ``vector_type="binary"``, whose ``dim`` counts bits).
        ``vector_type`` (or ``dtype``): float32, float16, int8, uint8, binary.
        ``index``: auto, flat, hnsw, ivf_flat, ivf_pq, or an IndexSpec, or a dict of its fields.
        ``parameters``: the fields of :class:`~vecdb.core.schema.IndexSpec` by name: ``m``, ``ef_construction``,
        ``ef_search``, ``quantization`` (auto, none, sq8, sq4, pq, opq, rabitq), ``bits``, ``subspaces``, ``nlist``,
        ``nprobe``, ``oversample``, ``vectors_on_disk``; ``M``, ``efConstruction`` and ``ef`` are taken too.
        ``indexed_fields``: dotted metadata paths to index; None indexes every scalar field.
        ``if_exists="ok"`` returns the collection that is there if its schema is the same.
        Raises InvalidArgument, LimitExceeded, CollectionExists (which says what differs).

        >>> docs = db.create_collection("docs", dim=3, index="hnsw", M=32)
        >>> docs.describe().records
        0
        """
        if check_text("if_exists", if_exists) not in ("error", "ok"):
            raise InvalidArgument("if_exists", f"unknown value {if_exists[:100]!r}; known are 'error' and 'ok'",
                                  got=if_exists[:100], limit="'error', 'ok'")
        given = resolve(parameters, CREATE_ALIASES, (*_INDEX_PARAMETERS, "vector_type"))
        if "vector_type" in given:
            if not isinstance(vector_type, str) or vector_type != "float32":
                raise InvalidArgument("vector_type", "is given twice, as 'dtype' too", got="dtype", limit="one of them")
            vector_type = given.pop("vector_type")
        schema = CollectionSchema(
            name=check_name(name), dim=check_int("dim", dim, 1, MAX_DIM),
            metric=check_metric(metric),  # type: ignore[arg-type]  # the schema makes it a member
            vector_type=check_vector_type(vector_type),  # type: ignore[arg-type]
            index=index_spec(index, given), indexed_fields=check_indexed_fields(indexed_fields))
        with self._session.call() as backend:
            try:
                backend.create_collection(schema)
            except CollectionExists as error:
                if if_exists == "error":
                    raise
                _refuse_other(schema, backend.schema(schema.name), error)
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
        with self._session.call() as backend:
            backend.schema(checked)
        return Collection(self._session, checked)

    def __getitem__(self, name: str) -> Collection:
        return self.collection(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.list_collections()

    def list_collections(self) -> list[str]:
        """The names of the collections, in order."""
        with self._session.call() as backend:
            return sorted(backend.list_collections())

    def drop_collection(self, name: str, *, missing_ok: bool = False) -> None:
        """Delete a collection and its records for good; raises CollectionNotFound unless ``missing_ok``."""
        checked = check_name(name)
        with self._session.call() as backend:
            try:
                backend.drop_collection(checked)
            except CollectionNotFound:
                if not missing_ok:
                    raise

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


def _refuse_other(wanted: CollectionSchema, existing: CollectionSchema, error: CollectionExists) -> None:
    found = differences(wanted, existing)
    if found:
        error.message += f", and its {'; its '.join(map(str, found))}"
        error.args = (error.message,)
        error.fields["differs"] = {one.name: (one.existing, one.wanted) for one in found}
        raise error
