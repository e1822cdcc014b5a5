"""One answer from those of several shards: pure.

**Nearest first, ties by id** (integers by value, then strings by code point).  A shard orders ties as its records came;
what came in the order of ids, as most is loaded, it gives in that order too, and so one shard and many answer alike.
Which of several records at the very same distance are the last of ``k`` is, on a shard, a matter of its index.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from vecdb.cluster.routing import Places, is_whole
from vecdb.core.ids import RecordId
from vecdb.core.query import Cost, Matches, QueryRequest, QueryResult
from vecdb.core.records import Command, DeleteIds, Record, UpdateMetadata, WriteResult

FEW: Final = 4
"""Queries that are merged one by one: NumPy's calls cost more than the sorting of so few."""

Floats: TypeAlias = npt.NDArray[np.float32]


def id_order(identity: RecordId) -> tuple[bool, Any]:
    """What ids are sorted by."""
    return isinstance(identity, str), identity


# --- queries --------------------------------------------------------------------------------------


def merge_results(results: Sequence[QueryResult], request: QueryRequest, labels: Sequence[str] = ()) -> QueryResult:
    """The nearest ``k`` of each query; ``labels`` name the shards in the plan."""
    if len(results) == 1:
        return results[0]
    matches = top_k([one.matches for one in results], request.k)
    missing = tuple(dict.fromkeys(chain.from_iterable(one.missing for one in results)))
    return QueryResult(matches, _plan(results, request, labels) if request.explain else None, missing,
                       _cost([one.cost for one in results if one.cost is not None]))


def nothing(request: QueryRequest) -> QueryResult:
    """The answer of no shard at all."""
    vectors = np.empty((0, request.vectors.shape[1]), request.vectors.dtype) if request.include_vectors else None
    return QueryResult([Matches([], np.empty(0, np.float32), [] if request.include_metadata else None, vectors)
                        for _ in range(len(request.vectors))])


def top_k(parts: Sequence[Sequence[Matches]], k: int) -> list[Matches]:
    """Of each query the nearest ``k`` of all parts, which answer the same queries."""
    queries = len(parts[0])
    listed = [list(part) for part in parts]
    if queries <= FEW:
        return [_nearest([part[at] for part in listed], k) for at in range(queries)]
    return _many(listed, k)


def _nearest(answers: Sequence[Matches], k: int) -> Matches:
    filled = [one for one in answers if one.ids]
    if len(filled) < 2:
        return _first(filled[0], k) if filled else answers[0]
    ids = [one for part in filled for one in part.ids]
    distances = np.concatenate([part.distances for part in filled])
    values = distances.tolist()
    order = sorted(range(len(ids)), key=lambda at: (values[at], isinstance(ids[at], str), ids[at]))[:k]
    return _chosen(filled, ids, distances, np.array(order, np.intp))


def _first(one: Matches, k: int) -> Matches:
    if len(one.ids) <= k:
        return one
    return Matches(one.ids[:k], one.distances[:k], None if one.metadata is None else one.metadata[:k],
                   None if one.vectors is None else one.vectors[:k])


def _many(parts: Sequence[Sequence[Matches]], k: int) -> list[Matches]:
    """All queries sorted at once; only those with ties are looked at one by one."""
    queries = len(parts[0])
    widths = [max((len(one.ids) for one in part), default=0) for part in parts]
    table = np.full((queries, sum(widths)), np.inf, np.float32)
    real = np.zeros(table.shape, np.bool_)
    at = 0
    for part, width in zip(parts, widths, strict=True):
        for row, one in enumerate(part):
            table[row, at:at + len(one.ids)] = one.distances
            real[row, at:at + len(one.ids)] = True
        at += width
    order = np.argsort(table, axis=1, kind="stable")
    ranked = np.take_along_axis(table, order, axis=1)
    counts = real.sum(axis=1)
    seen = np.minimum(counts, k + 1)  # the last one chosen may tie with the first that is not
    tied = ((ranked[:, 1:] == ranked[:, :-1]) & (np.arange(1, table.shape[1]) < seen[:, None])).any(axis=1)
    # Where an answer is infinitely far the filling ties with it.
    tied |= (real & np.isinf(table)).any(axis=1)
    starts = np.cumsum([0, *widths[:-1]])
    out: list[Matches] = []
    for row in range(queries):
        answers = [part[row] for part in parts]
        if tied[row]:
            out.append(_nearest(answers, k))
            continue
        best = order[row, :min(k, int(counts[row]))]
        source = np.searchsorted(starts, best, side="right") - 1
        sizes = np.cumsum([0, *(len(one.ids) for one in answers[:-1])])
        ids = [one for part in answers for one in part.ids]
        distances = np.concatenate([part.distances for part in answers])
        out.append(_chosen(answers, ids, distances, sizes[source] + best - starts[source]))
    return out


def _chosen(answers: Sequence[Matches], ids: list[RecordId], distances: Floats, order: Places) -> Matches:
    """These places of all answers one after the other."""
    places = order.tolist()
    metadata = vectors = None
    if answers[0].metadata is not None:
        every = [extra for part in answers for extra in part.metadata or ()]
        metadata = [every[at] for at in places]
    if answers[0].vectors is not None:
        vectors = np.concatenate([part.vectors for part in answers if part.vectors is not None])[order]
    return Matches([ids[at] for at in places], distances[order], metadata, vectors)


def _plan(results: Sequence[QueryResult], request: QueryRequest, labels: Sequence[str]) -> dict[str, Any]:
    plans = [one.plan or {} for one in results]
    return {"k": request.k, "queries": len(request.vectors),
            "shards": [{"shard": label, **plan} for label, plan in zip(labels, plans, strict=False)],
            "hops": sum(int(plan.get("hops", 0)) for plan in plans),
            "comparisons": sum(int(plan.get("comparisons", 0)) for plan in plans)}


def _cost(costs: Sequence[Cost]) -> Cost | None:
    """They ran at the same time: the longest wait and the longest work, and all that was looked at."""
    if not costs:
        return None
    return Cost(max(one.queue_ms for one in costs), max(one.compute_ms for one in costs),
                max(one.batched for one in costs), sum(one.hops for one in costs),
                sum(one.comparisons for one in costs))


# --- records --------------------------------------------------------------------------------------


def in_order(ids: Sequence[RecordId], parts: Iterable[Sequence[Record]]) -> list[Record]:
    """The records that exist, in the order asked: of ids asked twice each twice, of an id that two shards have both."""
    found: dict[RecordId, list[Record]] = {}
    for part in parts:
        mine: dict[RecordId, Record] = {}
        for record in part:
            mine[record.id] = record
        for identity, record in mine.items():
            found.setdefault(identity, []).append(record)
    return [record for identity in ids for record in found.get(identity, ())]


# --- writes ---------------------------------------------------------------------------------------


def merge_writes(results: Sequence[WriteResult], command: Command, everywhere: bool = False) -> WriteResult:
    """What all parts did together; ``everywhere``: every shard was asked for every id, and most of them miss it.

    What was done before its records came where they are may be told by several: that counts once.
    """
    if len(results) == 1 and not (everywhere and results[0].outcomes):
        return results[0] if not results[0].outcomes else replace(results[0], outcomes=())
    told = {(one.origin or result.shard, one.lo): one.counts for result in results for one in result.outcomes}
    # Where all that a shard did is told by others, it told so itself before its records went there.
    counts = [*told.values(), *(one.counts for one in results if not one.outcomes and (one.shard, None) not in told)]
    inserted, updated, deleted, missing = map(sum, zip(*counts, strict=True))
    if everywhere and isinstance(command, DeleteIds | UpdateMetadata):
        missing = max(0, len(set(command.ids)) - (deleted if isinstance(command, DeleteIds) else updated))
    if len(results) == 1:
        return replace(results[0], missing=missing, outcomes=())
    return WriteResult(inserted, updated, deleted, missing,
                       positions=merge_positions(one.positions for one in results))


def counting(parts: Sequence[tuple[int, int, int, WriteResult]], command: Command, shard_key: str | None
             ) -> list[WriteResult]:
    """What counts of a write's parts, which went under one key: group, ``lo``, ``hi`` and result of each."""
    return counted_once(parts) if is_whole(command, shard_key) else [part[3] for part in parts]


def counted_once(parts: Sequence[tuple[int, int, int, WriteResult]]) -> list[WriteResult]:
    """The same of a write whose parts name no records of their own (all that match, or every id asked of every shard).

    Parts that came to the same shard, for it took the place of theirs, are each answered with all that was done there;
    and that has in it what was done in shards whose hashes it has by now.
    """
    kept: list[tuple[int, int, int, WriteResult]] = []
    for part in sorted(parts, key=lambda one: (one[0], one[3].deleted + one[3].updated), reverse=True):
        if not any(other[1] <= part[1] and part[2] <= other[2] for other in kept):
            kept.append(part)
    return [part[3] for part in kept]


def merge_positions(parts: Iterable[Iterable[tuple[int, int]]]) -> tuple[tuple[int, int], ...]:
    """The furthest place of each shard, in the order of their numbers."""
    furthest: dict[int, int] = {}
    for shard, log_index in chain.from_iterable(parts):
        furthest[shard] = max(furthest.get(shard, 0), log_index)
    return tuple(sorted(furthest.items()))

