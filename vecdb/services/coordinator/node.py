"""A node of a cluster for its clients: any node answers any call, from its own replicas or by way of others."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from random import Random
from typing import Any, Final

from vecdb.cluster.control import ShardEntry
from vecdb.cluster.merge import in_order, merge_results, nothing
from vecdb.cluster.routing import asked, split_ids
from vecdb.core.calls import Call, Consistency
from vecdb.core.errors import DeadlineExceeded, InvalidArgument, Unavailable, Unsupported
from vecdb.core.filters.tree import Node as FilterNode
from vecdb.core.ids import RecordId
from vecdb.core.layout import ANYHOW, Layout
from vecdb.core.query import Count, Description, QueryRequest, QueryResult, ScanPage, ScanRequest
from vecdb.core.records import DeleteIds, DeleteWhere, Record, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema
from vecdb.core.shard_map import NodeRoute, ShardMap, ShardRoute
from vecdb.ports.clock import Clock
from vecdb.ports.node import Node, Progress
from vecdb.ports.observer import Observer
from vecdb.ports.peers import Peers
from vecdb.services.coordinator.care import Care
from vecdb.services.coordinator.collections import Collections
from vecdb.services.coordinator.fan import Answers, Chosen, Fan
from vecdb.services.coordinator.gathering import FEW_ROWS, Gathering, cut_several
from vecdb.services.coordinator.knowledge import Cluster, Counts, Knowledge, Shards
from vecdb.services.coordinator.scans import Scanner
from vecdb.services.coordinator.shard_reads import ELSEWHERE, Reading, ShardReader
from vecdb.services.coordinator.writes import Writer
from vecdb.services.replicas import Controlled, Engine, OwnReplicas

LIGHT_ROWS: Final = 8
"""Queries of one call from which on it is work that is divided among nodes."""
FEW_IDS: Final = 64
"""Of a fetch that asks for several shards together: more are taken apart by their size, for each by itself."""
ROW_BYTES: Final = 16 << 10
"""Of the answer to one query at most where shards are asked together, for as many as travel together."""
METADATA_BYTES: Final = 512


class ReplicatedNode:
    """A :class:`~vecdb.ports.node.Node`; see the package.  Belongs to one event loop."""

    def __init__(self, cluster: Cluster, engine: Engine, own: OwnReplicas, control: Controlled, peers: Peers,
                 clock: Clock, observer: Observer, random: Random) -> None:
        self.counts = Counts()
        self.know = Knowledge(cluster, own, control, peers, clock, random, self.counts)
        self.leaders, self.barriers = self.know.leaders, self.know.barriers
        self.reader = ShardReader(self.know)
        self.gathering = Gathering()
        self._engine = engine
        self._own = own
        self._control = control
        self._fan = Fan(self.know, self.reader)
        self.writer = Writer(self.know, engine, observer)
        self._scanner = Scanner(self.know, self.reader, self._fan, engine)
        self._collections = Collections(self.know)
        self._care = Care(self.know, self.reader, self._fan, engine)

    # --- collections ------------------------------------------------------------------------------

    async def create_collection(self, schema: CollectionSchema, call: Call, layout: Layout = ANYHOW) -> None:
        await self._collections.create(schema, call, layout)

    async def drop_collection(self, name: str, call: Call) -> None:
        await self._collections.drop(name, call)

    async def list_collections(self, call: Call) -> list[str]:
        return await self._collections.list(call)

    async def schema(self, name: str, call: Call) -> CollectionSchema:
        found = self._control.state.collections.get(name)
        return found.schema if found is not None and not call.session else await self._collections.schema(name, call)

    async def shards(self, name: str, call: Call) -> list[ShardEntry]:
        """The shards that calls of a collection go to, in the order of their ranges; ``CollectionNotFound``."""
        return list((await self.know.shards(name, call)).all)

    async def one_shard(self, what: str, call: Call) -> ShardEntry:
        """A shard by its label, or by its collection's name where that has one."""
        name, _, number = what.partition("@")
        shards = (await self.know.shards(name, call)).all
        found = [one for one in shards if not number or str(one.group) == number]
        if len(found) == 1:
            return found[0]
        known = ", ".join(f"{name}@{one.group}" for one in shards[:8])
        raise InvalidArgument("shard", f"{what!r} is not one shard; {name!r} has {known}", got=what[:200], limit=known)

    async def shard_map(self, name: str, call: Call) -> ShardMap:
        """Where the shards of a collection are, for clients that ask their nodes themselves."""
        know = self.know
        found = await know.shards(name, call)
        routes = tuple(ShardRoute(one.group, one.lo, one.hi, tuple(know.members(one)),
                                  know.leaders.likely(one.group) or "") for one in found.all)
        entries = know.control.state.nodes
        named = dict.fromkeys(node for route in routes for node in route.nodes)
        nodes = tuple(NodeRoute(node, entries[node].client_address, entries[node].zone) for node in named
                      if node in entries)
        return ShardMap(name, know.control.state.epoch, found.entry.shard_key, routes, nodes)

    async def caught_up(self, group: int, seconds: float) -> None:
        """Return once this node's replica of a shard has applied what was committed at the call; ``Unavailable`` where
        that takes longer.
        """
        until = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(until):
                log_index = await self.barriers.index(group)
            await self._own.replicator(group).wait_applied(log_index, until)
        except (TimeoutError, DeadlineExceeded):
            raise Unavailable(f"this node's replica of shard {group} is behind", group=group) from None

    def members(self, shard: ShardEntry) -> list[str]:
        """The nodes that hold a shard."""
        return self.know.members(shard)

    def still(self, shard: ShardEntry) -> None:
        """Raise where calls do not go to this shard any more."""
        self.know.still(shard)

    # --- writes -----------------------------------------------------------------------------------

    async def upsert(self, name: str, batch: UpsertBatch, call: Call) -> WriteResult:
        return await self.writer.upsert(name, batch, call)

    async def delete(self, name: str, command: DeleteIds | DeleteWhere, call: Call) -> WriteResult:
        return await self.writer.delete(name, command, call)

    async def update_metadata(self, name: str, command: UpdateMetadata, call: Call) -> WriteResult:
        return await self.writer.update_metadata(name, command, call)

    # --- reads ------------------------------------------------------------------------------------

    async def query(self, name: str, request: QueryRequest, call: Call) -> QueryResult:
        # What most queries are: of the only shard, which is here, and of no write in particular.  The rest of the way
        # costs five times as much (6 microseconds), and finds out nothing.
        if not (call.session or call.shards) and call.consistency is Consistency.EVENTUAL:
            known = self.know.known(name)
            if known is not None and len(known.all) == 1 and self._own.serves(known.all[0].group):
                with suppress(*ELSEWHERE):
                    return await self._engine.query(known.all[0].label, request, call)
        reading = self._querying(name, request)

        def choose(shards: Shards) -> Chosen[QueryResult]:
            return [(shard, reading) for shard in asked(shards.ring, request.filter, shards.entry.shard_key)]

        return await self._fan.read(name, call, choose, lambda answers: _merged(answers, request))

    def _querying(self, name: str, request: QueryRequest) -> Reading[QueryResult]:
        def there(shard: ShardEntry, node: Node, at: str, call: Call) -> Any:
            return self.gathering.query((shard.group, at), request, call,
                                        lambda request, mine: node.query(shard.label, request, mine))

        def together(groups: tuple[int, ...], at: str, call: Call) -> Any:
            replicas = self.know.peers.replicas(at)
            return self.gathering.query((groups, at), request, call,
                                        lambda request, mine: replicas.query_shards(name, request, mine), cut_several)

        return Reading("exact" if request.exact else "query",
                       lambda shard, call: self._engine.query(shard.label, request, call), there,
                       together=together if _is_short(request) else None,
                       heavy=request.exact or len(request.vectors) > LIGHT_ROWS)

    async def fetch(self, name: str, ids: Sequence[RecordId], call: Call, *, include_metadata: bool = True,
                    include_vectors: bool = True) -> list[Record]:
        wanted: dict[int, Sequence[RecordId]] = {}

        def fetch(shard: ShardEntry, node: Node, mine: Call) -> Any:
            return node.fetch(shard.label, wanted[shard.group], mine, include_metadata=include_metadata,
                              include_vectors=include_vectors)

        def together(groups: tuple[int, ...], at: str, mine: Call) -> Any:
            some = list(dict.fromkeys(one for group in groups for one in wanted[group]))
            return self.know.peers.replicas(at).fetch_shards(name, some, mine, include_metadata=include_metadata,
                                                             include_vectors=include_vectors)

        reading: Reading[list[Record]] = Reading(
            "fetch", lambda shard, mine: fetch(shard, self._engine, mine),
            lambda shard, node, _, mine: fetch(shard, node, mine), together=together if len(ids) <= FEW_IDS else None)

        def choose(shards: Shards) -> Chosen[list[Record]]:
            parts = split_ids(shards.ring, ids, shards.entry.shard_key) or [(shards.all[0], None)]
            wanted.update((shard.group, ids if places is None else [ids[at] for at in places.tolist()])
                          for shard, places in parts)
            return [(shard, reading) for shard, _ in parts]

        return await self._fan.read(name, call, choose, lambda answers: in_order(ids, answers.found))

    async def count(self, name: str, where: FilterNode | None, call: Call) -> int:
        reading: Reading[int] = Reading("count" if where is None else "count where",
                               lambda shard, mine: self._engine.count(shard.label, where, mine),
                               lambda shard, node, _, mine: node.count(shard.label, where, mine),
                               together=lambda groups, at, mine: self.know.peers.replicas(at).count_shards(
                                   name, where, mine))

        def choose(shards: Shards) -> Chosen[int]:
            return [(shard, reading) for shard in asked(shards.ring, where, shards.entry.shard_key)]

        def merge(answers: Answers[int]) -> int:
            total = sum(answers.found)
            return Count.of(total, answers.missing) if answers.missing else total

        return await self._fan.read(name, call, choose, merge)

    async def scan(self, name: str, request: ScanRequest, call: Call) -> ScanPage:
        if call.shards:
            raise Unsupported("scan: it goes through all shards of a collection", argument="shards")
        return await self._scanner.scan(name, request, call)

    # --- maintenance ------------------------------------------------------------------------------

    async def describe(self, name: str, call: Call) -> Description:
        return await self._care.describe(name, call)

    async def optimize(self, name: str, call: Call, on_progress: Progress | None = None) -> Description:
        return await self._care.optimize(name, call, on_progress)

    async def jobs(self, name: str | None, call: Call) -> list[dict[str, Any]]:
        return await self._care.jobs(name, call)

    async def verify(self, name: str, call: Call) -> dict[str, Any]:
        return await self._care.verify(name, call)

    async def close(self) -> None:
        """The engine's own end is its owner's."""


def _merged(answers: Answers[QueryResult], request: QueryRequest) -> QueryResult:
    if not answers.found:
        return nothing(request)
    merged = merge_results(answers.found, request, [str(shard.group) for shard in answers.shards])
    if not answers.missing:
        return merged
    return QueryResult(merged.matches, merged.plan, (*merged.missing, *answers.missing), merged.cost)


def _is_short(request: QueryRequest) -> bool:
    """Whether shards may be asked together: the plan of each is told by itself, and long answers are taken apart."""
    row = 12 + (METADATA_BYTES if request.include_metadata else 0)
    if request.include_vectors:
        row += request.vectors.itemsize * request.vectors.shape[1]
    return not request.explain and len(request.vectors) <= FEW_ROWS and request.k * row <= ROW_BYTES
