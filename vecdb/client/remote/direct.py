"""Queries and fetches asked of the shards' nodes themselves (``connect(…, direct=True)``): one hop less.

The client holds the map of a collection's shards (:class:`~vecdb.core.shard_map.ShardMap`), asks as few nodes as have
all the shards that a call concerns, each once, for its shards alone, and merges what they say.  A server that is asked
for a shard that is no more says so; then, and after :data:`MAP_S`, the map is fetched anew.

**Whatever fails goes the usual way**: by whichever node of the connection's addresses, which asks the shards itself.
So does what gains nothing or is seldom: writes, scans, counts, batches of several messages, explained queries.
"""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from vecdb.client.remote import methods as m
from vecdb.client.remote.calling import ELSEWHERE, left, read
from vecdb.client.remote.io import Link, Pending, Rpc, StartOn, UnaryOn, Wait
from vecdb.client.remote.procedures import FETCH_ROWS, Procedures, answer, query_parts, reading
from vecdb.client.remote.retry import Failed
from vecdb.client.steps import Steps
from vecdb.cluster.merge import in_order, merge_results
from vecdb.cluster.routing import Ring, asked, split_ids
from vecdb.core.calls import Call, check
from vecdb.core.errors import DeadlineExceeded, StaleShardMap, VecdbError
from vecdb.core.ids import RecordId
from vecdb.core.query import QueryRequest, QueryResult
from vecdb.core.records import Record
from vecdb.core.shard_map import ShardMap, ShardRoute
from vecdb.v1 import cluster_pb2 as k
from vecdb.v1 import records_pb2 as r
from vecdb.wire import convert
from vecdb.wire.shard_map import map_from_wire

T = TypeVar("T")

MAP_S: Final = 30.0
"""How long a map is good that nobody contradicts; and how long it is remembered that there is none."""
UNTOLD_S: Final = 2.0
"""The same where a shard's nodes have not said yet where clients reach them."""
SHARE: Final = 0.5
"""Of the time that is left, for the direct way: the rest is for the usual one."""


@dataclass(frozen=True, slots=True)
class _Known:
    """None: there is no map, or none that helps."""

    map: ShardMap | None
    ring: Ring[ShardRoute] | None
    until: float


@dataclass(frozen=True, slots=True)
class _Part:
    link: Link
    shards: tuple[int, ...]


class Links:
    """To shard nodes, by address, opened when they are first needed; any number of threads may use it."""

    def __init__(self, open_link: Callable[[str], Link], allowed: Callable[[str], bool]) -> None:
        """``allowed``: whether what the connection sends may go to an address."""
        self._open = open_link
        self._lock = threading.Lock()
        self.allowed = allowed
        self.all: dict[str, Link] = {}

    def to(self, address: str) -> Link:
        found = self.all.get(address)
        if found is None:
            with self._lock:
                found = self.all.get(address)
                if found is None:
                    found = self.all[address] = self._open(address)
        return found


class DirectProcedures(Procedures):
    """The API over one connection, and over others to the shards' nodes."""

    def __init__(self, links: Links, *given: Any) -> None:
        super().__init__(*given)
        self.links = links
        self.asked_direct = 0
        """Calls that were answered so."""
        self._maps: dict[str, _Known] = {}
        self._turn = itertools.count()

    # --- reads ------------------------------------------------------------------------------------

    def query(self, name: str, request: QueryRequest, call: Call | None = None) -> Steps[QueryResult]:
        if not request.explain and len(query_parts(request)) == 1:
            found = yield from self._query_direct(name, request, call)
            if found is not None:
                return found
        return (yield from super().query(name, request, call))

    def _query_direct(self, name: str, request: QueryRequest, call: Call | None) -> Steps[QueryResult | None]:
        known = yield from self._known(name, call)
        if known.map is None or known.ring is None:
            return None
        shards = [one.group for one in asked(known.ring, request.filter, known.map.shard_key)]
        parts = self._cover(known.map, shards)
        results = yield from self._ask(
            name, m.QUERY, parts, call, lambda mine, _: reading(convert.query_to_wire(name, request), mine),
            lambda raw: answer(raw, request))
        return None if results is None else merge_results(results, request)

    def fetch(self, name: str, ids: Sequence[RecordId], call: Call | None = None, *, include_metadata: bool = True,
              include_vectors: bool = True) -> Steps[list[Record]]:
        if 0 < len(ids) <= FETCH_ROWS:
            known = yield from self._known(name, call)
            if known.map is not None and known.ring is not None and known.map.shard_key is None:
                wanted = {shard.group: list(ids) if places is None else [ids[at] for at in places.tolist()]
                          for shard, places in split_ids(known.ring, ids)}

                def encode(mine: Call, shards: tuple[int, ...]) -> bytes:
                    some = [one for group in shards for one in wanted[group]]
                    return reading(convert.fetch_to_wire(name, some, include_metadata, include_vectors), mine)

                found = yield from self._ask(name, m.FETCH, self._cover(known.map, list(wanted)), call, encode,
                                             lambda raw: convert.records_from_wire(read(r.FetchReply, raw)))
                if found is not None:
                    return in_order(ids, found)
        return (yield from super().fetch(name, ids, call, include_metadata=include_metadata,
                                         include_vectors=include_vectors))

    # --- the map ----------------------------------------------------------------------------------

    def _known(self, name: str, call: Call | None) -> Steps[_Known]:
        found = self._maps.get(name)
        if found is not None and found.until > time.monotonic():
            return found
        payload = k.ShardMapRequest(collection=name).SerializeToString()
        shard_map: ShardMap | None = None
        ring: Ring[ShardRoute] | None = None
        try:
            shard_map = map_from_wire(read(k.ShardMapReply, (yield from self.caller.call(m.SHARD_MAP, payload, call))))
            ring = Ring(shard_map.shards)
        except (VecdbError, ValueError):  # the usual way says what is wrong, if anything is
            shard_map = None
        addresses = {one.name for one in shard_map.nodes if one.address} if shard_map is not None else set()
        whole = shard_map is None or all(addresses.intersection(one.nodes) for one in shard_map.shards)
        made = _Known(shard_map, ring, time.monotonic() + (MAP_S if whole else UNTOLD_S))
        if len(self._maps) >= 1_024:
            self._maps.clear()
        self._maps[name] = made
        return made

    def _cover(self, shard_map: ShardMap, shards: Sequence[int]) -> list[_Part] | None:
        """As few nodes as have all of these shards, with those that each is asked for; None: there are none."""
        holders = {one.group: one.nodes for one in shard_map.shards}
        turn, now = next(self._turn), time.monotonic()
        links: dict[str, Link] = {}
        for node in shard_map.nodes[turn % max(1, len(shard_map.nodes)):] + \
                shard_map.nodes[:turn % max(1, len(shard_map.nodes))]:
            if node.address and self.links.allowed(node.address):
                link = self.links.to(node.address)
                if link.down_until <= now:
                    links[node.name] = link
        left_over, parts = list(shards), list[_Part]()
        while left_over:
            best = max(links, key=lambda node: sum(node in holders[group] for group in left_over), default=None)
            mine = tuple(group for group in left_over if best in holders[group])
            if best is None or not mine:
                return None
            links[best].claim(now)
            parts.append(_Part(links[best], mine))
            left_over = [group for group in left_over if group not in mine]
        return parts

    # --- calls ------------------------------------------------------------------------------------

    def _ask(self, name: str, rpc: Rpc, parts: list[_Part] | None, call: Call | None,
             encode: Callable[[Call, tuple[int, ...]], bytes], decode: Callable[[bytes], T]) -> Steps[list[T] | None]:
        """The answers of all parts; None where that did not work out."""
        if not parts:
            return None
        deadline = self.caller.deadline(call)
        timeout = left(deadline)
        share = None if timeout is None else SHARE * timeout
        metadata = self.caller.metadata(call)
        if self.caller.addresses == 1:  # else that is said already
            metadata = (*(metadata or ()), (ELSEWHERE, "1"))
        flying: list[Pending] = []
        out: list[T] = []
        try:
            if len(parts) == 1:
                payload = encode(_of(call, parts[0].shards), parts[0].shards)
                out.append(decode((yield UnaryOn(parts[0].link, rpc, payload, share, metadata))))
            else:
                for part in parts:
                    payload = encode(_of(call, part.shards), part.shards)
                    flying.append((yield StartOn(part.link, rpc, payload, share, metadata)))
                while flying:
                    pending = flying[0]
                    raw = yield Wait(pending)
                    del flying[0]
                    out.append(decode(raw))
        except (Failed, VecdbError) as failed:
            check(call)
            error = failed.error if isinstance(failed, Failed) else failed
            if isinstance(error, DeadlineExceeded):
                (flying[0].link if flying else parts[0].link).slow()
            if isinstance(error, StaleShardMap) or error.code in ("NOT_FOUND", "INVALID_ARGUMENT", "UNIMPLEMENTED"):
                self._maps.pop(name, None)
            return None
        finally:
            for pending in flying:
                pending.cancel()
        self.caller.budget.gain()
        self.asked_direct += 1
        return out

    def drop_collection(self, name: str, call: Call | None = None) -> Steps[None]:
        self._maps.pop(name, None)
        yield from super().drop_collection(name, call)
        self._maps.pop(name, None)


def _of(call: Call | None, shards: tuple[int, ...]) -> Call:
    return Call(shards=shards) if call is None else replace(call, shards=shards)
