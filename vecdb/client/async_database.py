"""``AsyncDatabase`` and ``connect_async``: the SDK for asyncio, over a server or a directory."""

import asyncio
import os
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import Any, Literal, Self

from vecdb.client import making
from vecdb.client.admin import ask, transfer
from vecdb.client.async_collection import AsyncCollection
from vecdb.client.async_operating import AsyncOperating
from vecdb.client.async_session import AsyncSession
from vecdb.client.connect import check_key, directory, embedded, network
from vecdb.client.deadlines import check_timeout
from vecdb.client.options import check_consistency, check_flag
from vecdb.core.access import Grant, Key, NewKey
from vecdb.core.calls import Consistency
from vecdb.core.errors import InvalidArgument
from vecdb.core.layout import Layout
from vecdb.core.schema import IndexSpec, Metric, VectorType, check_name, check_shard
from vecdb.core.shard_map import ShardMap
from vecdb.core.shards import ShardInfo, ShardVerification


class AsyncDatabase:
    """An open database for the tasks of one event loop; made by :func:`vecdb.connect_async`.

    Its methods are those of :class:`~vecdb.client.database.Database`, awaited.  ``node`` is any
    :class:`vecdb.ports.node.Node`; it is closed with the database.
    """

    def __init__(self, node: Any, label: str = "in memory", consistency: str | Consistency = "session") -> None:
        self._session = AsyncSession(node, label, check_consistency(consistency) or Consistency.SESSION)

    async def create_collection(self, name: str, dim: int, metric: str | Metric = "cosine", *,
                                vector_type: str | VectorType = "float32",
                                index: str | IndexSpec | dict[str, Any] = "auto",
                                indexed_fields: list[str] | tuple[str, ...] | None = None,
                                shards: int | None = None, replication_factor: int | None = None,
                                shard_key: str | None = None, expected_records: int | None = None,
                                if_exists: Literal["error", "ok"] = "error", timeout: float | None = None,
                                **parameters: Any) -> AsyncCollection:
        """Make a collection and return its handle, as :meth:`Database.create_collection`."""
        schema = making.check_schema(name, dim, metric, vector_type, index, indexed_fields, if_exists, parameters)
        layout = Layout(shards, replication_factor, shard_key, expected_records)
        await self._session.run(making.create(schema, if_exists == "ok", layout), check_timeout(timeout))
        return AsyncCollection(self._session, schema.name)

    async def get_or_create_collection(self, name: str, dim: int, metric: str | Metric = "cosine",
                                       **parameters: Any) -> AsyncCollection:
        """``create_collection`` with ``if_exists="ok"``."""
        if "if_exists" in parameters:
            raise InvalidArgument("if_exists", "is always 'ok' here", got="if_exists", limit="no such argument")
        return await self.create_collection(name, dim, metric, if_exists="ok", **parameters)

    async def collection(self, name: str) -> AsyncCollection:
        """Return the handle of a collection; raises CollectionNotFound."""
        checked = check_name(name)
        await self._session.run(making.find(checked))
        return AsyncCollection(self._session, checked)

    async def list_collections(self, *, timeout: float | None = None) -> list[str]:
        """The names of the collections, in order."""
        return await self._session.run(making.names(), check_timeout(timeout))

    async def drop_collection(self, name: str, *, missing_ok: bool = False, timeout: float | None = None) -> None:
        """Delete a collection and its records for good; raises CollectionNotFound unless ``missing_ok``."""
        known = self._session.positions.of(check_name(name))
        await self._session.run(making.drop(name, missing_ok), check_timeout(timeout))
        self._session.positions.dropped(name, known)

    def session_token(self, *collections: str) -> str:
        """What this handle has written, as text for another one to go on from, as :meth:`Database.session_token`."""
        return self._session.session_token(check_name(name) for name in collections)

    def use_session_token(self, token: str) -> None:
        """Let session reads see the writes that ``token`` speaks of, as :meth:`Database.use_session_token`."""
        self._session.use_session_token(token)

    async def jobs(self, name: str | None = None, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """Background jobs of a collection, or of all: ``collection kind state stage done total error``."""
        return await self._session.run(making.jobs(name), check_timeout(timeout))

    @property
    def admin(self) -> "AsyncAdmin":
        """The server itself: what it is, and its API keys; Unsupported for a directory."""
        return AsyncAdmin(self._session)

    @property
    def closed(self) -> bool:
        return self._session.closed

    async def close(self) -> None:
        """Wait for running calls, then close; closing again does nothing."""
        await self._session.close()

    async def __aenter__(self) -> Self:
        self._session.check_open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncDatabase {self._session.label}{' (closed)' if self.closed else ''}>"


class AsyncAdmin:
    """:class:`~vecdb.client.admin.Admin`, awaited."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    @property
    def cluster(self) -> AsyncOperating:
        """The cluster: its nodes, and the jobs that change who holds what."""
        return AsyncOperating(self._session)

    async def server(self, *, timeout: float | None = None) -> dict[str, Any]:
        """``version api node_id uptime_s`` and what else the server says of itself."""
        found: dict[str, Any] = await self._session.run(ask("server"), check_timeout(timeout))
        return found

    async def shards(self, collection: str | None = None, *, timeout: float | None = None) -> list[ShardInfo]:
        """The shard of a collection, or of each and the control group: who leads it, how far its replicas are."""
        name = None if collection is None else check_name(collection)
        found: list[ShardInfo] = await self._session.run(ask("shards", name), check_timeout(timeout))
        return found

    async def shard_map(self, collection: str, *, timeout: float | None = None) -> ShardMap:
        """Which hashes each shard of a collection has, which nodes hold it, and the epoch of that."""
        found: ShardMap = await self._session.run(ask("shard_map", check_name(collection)), check_timeout(timeout))
        return found

    async def verify_shard(self, collection: str, *, deep: bool = False,
                           timeout: float | None = None) -> ShardVerification:
        """Compare what all replicas hold, at one place of the log; ``deep``: each reads its records again, too."""
        steps = ask("verify_shard", check_shard(collection), check_flag("deep", deep))
        found: ShardVerification = await self._session.run(steps, check_timeout(timeout))
        return found

    async def transfer_leader(self, collection: str, to: str | None = None, *, timeout: float | None = None) -> None:
        """Hand the leadership of a shard over, as :meth:`Admin.transfer_leader`."""
        await self._session.run(transfer(collection, to), check_timeout(timeout))

    async def create_key(self, name: str, grants: Sequence[Grant], ttl_s: float = 0.0, *,
                         timeout: float | None = None) -> NewKey:
        """Make an API key; the secret is told this once.  ``ttl_s``: seconds it is good for, 0 for ever."""
        steps = ask("create_key", name, grants, ttl_s)
        made: NewKey = await self._session.run(steps, check_timeout(timeout))
        return made

    async def list_keys(self, *, timeout: float | None = None) -> list[Key]:
        """Every key, the revoked and the expired too."""
        found: list[Key] = await self._session.run(ask("list_keys"), check_timeout(timeout))
        return found

    async def rotate_key(self, id: str, overlap_s: float = 0.0, *, timeout: float | None = None) -> NewKey:
        """A new secret for a key; the old one is good for ``overlap_s`` more seconds."""
        steps = ask("rotate_key", id, overlap_s)
        made: NewKey = await self._session.run(steps, check_timeout(timeout))
        return made

    async def revoke_key(self, id: str, *, timeout: float | None = None) -> None:
        """End a key; raises KeyNotFound."""
        await self._session.run(ask("revoke_key", id), check_timeout(timeout))


class Connecting:
    """A database on its way: ``await`` it, or enter it with ``async with``."""

    def __init__(self, target: str | os.PathLike[str], api_key: str | None, consistency: Consistency,
                 options: dict[str, Any]) -> None:
        self._target = target
        self._api_key = api_key
        self._consistency = consistency
        self._options = options
        self._database: AsyncDatabase | None = None

    async def _open(self) -> AsyncDatabase:
        place = network(self._target)
        if place is not None:
            from vecdb.client.remote.opening import open_node

            node, label = await open_node(place, self._api_key, self._options)
            return AsyncDatabase(node, label, self._consistency)
        from vecdb.client.threads import ThreadNode

        path = directory(self._target)
        backend = await asyncio.to_thread(embedded, path, self._options)
        return AsyncDatabase(ThreadNode(backend), path, self._consistency)

    def __await__(self) -> Generator[Any, None, AsyncDatabase]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncDatabase:
        self._database = await self._open()
        return self._database

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        if self._database is not None:
            await self._database.close()


def connect_async(target: str | os.PathLike[str], *, api_key: str | None = None,
                  consistency: str | Consistency = "session", **options: Any) -> Connecting:
    """Open a database for asyncio: ``db = await connect_async(...)`` or ``async with connect_async(...) as db``.

    Targets, options and errors are those of :func:`vecdb.connect`; a directory is opened embedded, and its calls run in
    threads.

    >>> async with connect_async("grpc://localhost:7700") as db:  # doctest: +SKIP
    ...     docs = await db.collection("docs")
    ...     hits = await docs.query(vector, k=10)
    """
    check_key(api_key)
    return Connecting(target, api_key, check_consistency(consistency) or Consistency.SESSION, options)
