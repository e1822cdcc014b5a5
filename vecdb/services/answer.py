"""A query on a pinned view of a shard: each segment searched, answers joined, records attached.

In a trace it is a span, ``shard``, and each segment's search one below it, ``kernel``, on whatever thread it ran.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from vecdb.ann.found import Found
from vecdb.ann.space import Space
from vecdb.core.calls import Call
from vecdb.core.ids import RecordId
from vecdb.core.query import Columns, Cost, Matches, QueryRequest, QueryResult
from vecdb.core.schema import Metric, collection_of
from vecdb.ports import tracing
from vecdb.ports.compute import Compute
from vecdb.segment.matching import StaleView
from vecdb.segment.merge import top_k
from vecdb.segment.search import Planned, SegmentAnswer, plan_view, run_plan
from vecdb.shard import rows
from vecdb.shard.machine import ShardMachine
from vecdb.shard.view import SegmentView, ShardView

MIN_ROWS_PER_THREAD = 8
"""Queries worth a thread hand-off: below, one thread answers sooner than two."""


def answer(view: ShardView, request: QueryRequest, machine: ShardMachine, compute: Compute,
           call: Call | None = None) -> QueryResult:
    """Answer every row of ``request.vectors``; a damaged part of a segment is named in ``missing``.

    Raises what ends ``call``.
    """
    tracer = tracing.get()
    if tracer.current() is None:
        return _answer(view, request, machine, compute, call, run_plan)
    with tracer.start("shard", attributes={"db.collection.name": collection_of(machine.schema.name),
                                           "vecdb.segments": len(view.segments)}) as span:
        return _answer(view, request, machine, compute, call, partial(_traced, tracer, span))


def _traced(tracer: tracing.Tracer, parent: tracing.Span, planned: Planned, queries: npt.NDArray[Any],
            call: Call | None) -> SegmentAnswer:
    """``run_plan`` inside a span of its own."""
    about: dict[str, tracing.Value] = {"vecdb.segment": planned.view.segment.name, "vecdb.rows": len(queries),
                                       "vecdb.k": planned.request.k}
    with tracer.start("kernel", parent=parent, attributes=about) as span:
        found = run_plan(planned, queries, call)
        span.set("vecdb.hops", found.found.hops)
        span.set("vecdb.comparisons", found.found.comparisons)
        if "strategy" in found.plan:
            span.set("vecdb.strategy", found.plan["strategy"])
        return found


def _answer(view: ShardView, request: QueryRequest, machine: ShardMachine, compute: Compute, call: Call | None,
            search: Callable[..., SegmentAnswer]) -> QueryResult:
    if len(request.vectors) < 2 * MIN_ROWS_PER_THREAD:
        return _in_parts(view, request, machine, compute, call, search, 1)
    with compute.sharing as threads:  # two batches at once are done sooner, and for less, by a thread each
        return _in_parts(view, request, machine, compute, call, search, threads)


def _in_parts(view: ShardView, request: QueryRequest, machine: ShardMachine, compute: Compute, call: Call | None,
              search: Callable[..., SegmentAnswer], threads: int) -> QueryResult:
    queries = request.vectors
    segments = [segment for segment in view.segments if segment.live_count]
    chunks = _chunks(len(queries), threads)
    together = chunks[0][1] - chunks[0][0]
    plans = [plan_view(segment, request, together, machine.read_metadata, call) for segment in segments]
    if len(chunks) == 1:
        answers = [[search(planned, queries, call) for planned in plans]]
    else:
        answers = _on_threads(plans, queries, chunks, compute, call, search)
    matches: Sequence[Matches]
    if not segments:
        matches = [_nothing(request, machine) for _ in range(len(queries))]
    elif len(queries) == 1 and len(plans) == 1 and request.within is None:
        matches = [_one_match(segments[0], answers[0][0].found, request, machine)]
    else:
        matches = _joined([_matches(segments, parts, request, machine) for parts in answers])
    missing = tuple([planned.missing for planned in plans if planned.missing is not None])
    plan = _plan(view, request, answers) if request.explain else None
    return QueryResult(matches, plan, missing, _cost(answers, len(queries)))


def _on_threads(plans: Sequence[Planned], queries: npt.NDArray[Any], chunks: Sequence[tuple[int, int]],
                compute: Compute, call: Call | None, search: Callable[..., SegmentAnswer]) -> list[list[SegmentAnswer]]:
    """The chunks' answers, in their order."""
    answers: list[list[SegmentAnswer]] = [[] for _ in chunks]

    def work(place: int, lo: int, hi: int) -> Callable[[], None]:
        def run() -> None:
            answers[place] = [search(planned, queries[lo:hi], call) for planned in plans]
        return run

    compute.run([work(place, lo, hi) for place, (lo, hi) in enumerate(chunks)])
    return answers


def _chunks(count: int, threads: int) -> list[tuple[int, int]]:
    parts = min(threads, count // MIN_ROWS_PER_THREAD)
    if parts <= 1:
        return [(0, count)]
    edges = np.linspace(0, count, parts + 1).astype(int).tolist()
    return [(lo, hi) for lo, hi in pairwise(edges) if hi > lo]


def _matches(segments: Sequence[SegmentView], parts: Sequence[SegmentAnswer], request: QueryRequest,
             machine: ShardMachine) -> Sequence[Matches]:
    """Join the segments' answers for one chunk of queries and attach what was asked for."""
    if len(parts) == 1 and request.within is None:
        found = parts[0].found
        if found.ordinals.shape[1] and found.ordinals[:, -1].min() >= 0:
            return _full_matches(segments[0], found, request, machine)
    space = machine.growing.space
    source, ordinals, raw = top_k([part.found for part in parts], request.k)
    distances = _distances(space, raw)
    keep = ordinals >= 0
    if request.within is not None:
        keep &= raw <= space.from_distance(request.within)
    counts = keep.sum(axis=1)
    source, ordinals, distances = source[keep], ordinals[keep], distances[keep]
    ids, rids = _identify(segments, source, ordinals)
    metadata = _metadata(rids, machine) if request.include_metadata else None
    vectors = _vectors(segments, source, ordinals, machine) if request.include_vectors else None
    out: list[Matches] = []
    start = 0
    for size in counts.tolist():
        stop = start + size
        out.append(Matches(ids[start:stop], distances[start:stop],
                           None if metadata is None else metadata[start:stop],
                           None if vectors is None else vectors[start:stop]))
        start = stop
    return out


def _joined(chunks: Sequence[Sequence[Matches]]) -> Sequence[Matches]:
    """The answers of all chunks, as columns where all of them are of the same width."""
    if len(chunks) == 1:
        return chunks[0]
    columns = [chunk for chunk in chunks if isinstance(chunk, Columns)]
    if len(columns) == len(chunks) and len({chunk.ids.shape[1] for chunk in columns}) == 1:
        return Columns(np.concatenate([chunk.ids for chunk in columns]),
                       np.concatenate([chunk.distances for chunk in columns]))
    return [one for chunk in chunks for one in chunk]


def _full_matches(segment: SegmentView, found: Found, request: QueryRequest, machine: ShardMachine
                  ) -> Sequence[Matches]:
    """Many queries answered by one segment, each with as many results as the others: rows of whole columns."""
    queries, k = found.ordinals.shape
    distances = _distances(machine.growing.space, found.distances)
    if not request.include_metadata and not request.include_vectors and (numbers := segment.integer_ids()) is not None:
        return Columns(numbers[found.ordinals], distances)
    ordinals = found.ordinals.reshape(-1)
    ids = segment.ids(ordinals)
    metadata = _metadata(segment.rids(ordinals), machine) if request.include_metadata else None
    vectors = segment.vectors(ordinals) if request.include_vectors else None
    return [Matches(ids[start : start + k], row, None if metadata is None else metadata[start : start + k],
                    None if vectors is None else vectors[start : start + k])
            for start, row in zip(range(0, queries * k, k), distances, strict=True)]


def _distances(space: Space, raw: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Users' distances."""
    distances = space.to_distance(raw).astype(np.float32, copy=False)
    if space.metric is Metric.COSINE:  # rounding may put a vector a hair closer to itself than itself
        return np.maximum(distances, np.float32(0))
    return distances


def _one_match(segment: SegmentView, found: Found, request: QueryRequest, machine: ShardMachine) -> Matches:
    """One query answered by one segment, as most are: nothing to join, little to lay out."""
    ordinals, raw = found.ordinals[0], found.distances[0]
    if len(ordinals) and ordinals[-1] < 0:
        there = ordinals >= 0
        ordinals, raw = ordinals[there], raw[there]
    return Matches(segment.ids(ordinals), _distances(machine.growing.space, raw),
                   _metadata(segment.rids(ordinals), machine) if request.include_metadata else None,
                   segment.vectors(ordinals) if request.include_vectors else None)


def _nothing(request: QueryRequest, machine: ShardMachine) -> Matches:
    """The answer of an empty collection."""
    space = machine.growing.space
    vectors = np.empty((0, space.row_items), space.row_dtype)
    return Matches([], np.empty(0, np.float32), [] if request.include_metadata else None,
                   vectors if request.include_vectors else None)


def _identify(segments: Sequence[SegmentView], source: npt.NDArray[np.int32], ordinals: npt.NDArray[np.int32]
              ) -> tuple[list[RecordId], npt.NDArray[np.int64]]:
    """Ids and rids of (segment, ordinal) pairs."""
    if len(segments) == 1:
        return segments[0].ids(ordinals), segments[0].rids(ordinals)
    ids: list[RecordId] = [0] * len(ordinals)
    rids = np.empty(len(ordinals), np.int64)
    for place, segment in enumerate(segments):
        at = np.flatnonzero(source == place)
        if len(at):
            rids[at] = segment.rids(ordinals[at])
            for position, one in zip(at.tolist(), segment.ids(ordinals[at]), strict=True):
                ids[position] = one
    return ids, rids


def _metadata(rids: npt.NDArray[np.int64], machine: ShardMachine) -> list[dict[str, Any]]:
    found = machine.read_records(rids.tolist())
    if any(value is None for value in found):
        raise StaleView
    return [orjson.loads(rows.record_metadata(value)) for value in found if value is not None]


def _vectors(segments: Sequence[SegmentView], source: npt.NDArray[np.int32], ordinals: npt.NDArray[np.int32],
             machine: ShardMachine) -> npt.NDArray[Any]:
    space = machine.growing.space
    out = np.empty((len(ordinals), space.row_items), space.row_dtype)
    for place, segment in enumerate(segments):
        at = np.flatnonzero(source == place)
        if len(at):
            out[at] = segment.vectors(ordinals[at])
    return out


def _plan(view: ShardView, request: QueryRequest, answers: Sequence[Sequence[SegmentAnswer]]) -> dict[str, Any]:
    cost = _cost(answers, len(request.vectors))
    return {"k": request.k, "queries": len(request.vectors), "log_index": view.state.applied,
            "segments": [part.plan for part in answers[0]], "hops": cost.hops, "comparisons": cost.comparisons}


def _cost(answers: Sequence[Sequence[SegmentAnswer]], queries: int) -> Cost:
    """What was counted; the time is its caller's to measure."""
    found = [part.found for parts in answers for part in parts]
    return Cost(batched=queries, hops=sum(one.hops for one in found),
                comparisons=sum(one.comparisons for one in found))
