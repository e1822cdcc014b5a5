"""Searching a graph: on rows or codes, reranked or not, many queries in one call or one with little around it."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vecdb.ann import flat
from vecdb.ann.codes import Codes, Prepared, QuickCodes, RowCodes, address, frozen
from vecdb.ann.found import Found
from vecdb.ann.hnsw.graph import Graph, Scratch
from vecdb.ann.rerank import rerank_on
from vecdb.core.limits import MAX_EF
from vecdb.kernels import beam as kernels
from vecdb.kernels.beam import FILTERED, PLAIN, POST, T_COMPARISONS, T_HOPS, T_STOPPED
from vecdb.kernels.bitmaps import count_bits, sample_bits

Mode = Literal["post", "filtered"]
Numbers = tuple[int, int, int, int, int, int]
Bits = npt.NDArray[np.uint64]
Stop = npt.NDArray[np.int32] | None
SEEDS = 48
"""Allowed vertices a filtered search starts from besides the entry: the filter may exclude all that lies near it."""
_PROBE = 48
"""Nearest vertices looked at to see whether a filter leaves anything near a query."""
_PROBE_MEANS = 2.0
"""Fewer of them expected to be allowed than this say nothing: so narrow a filter is walked as it is."""
_PROBE_FAR = 4.0
"""Below the expected number divided by this, the filter's matches count as far from the query."""
_COMMON = 0.5
"""Share of allowed vertices from which a walk over all of them finds some near any query, but for odd cases."""
_QUICK_K = 256
"""Most results of a single query whose buffers are kept."""
_QUERIES_AT = (kernels.P_CODES + 5, kernels.P_ROWS + 5)
_WIDEN = 4
"""Each try of a range search has a beam this many times wider than the last."""

_NO_STOP = frozen(np.zeros(1, np.int32))
_NO_STOP_AT = address(_NO_STOP)


class Searcher:
    """Everything a thread needs to search one graph, laid out once: make one per thread and graph, and keep it.

    ``codes`` are walked on.  With ``exact`` rows (over the same ordinals) the best of each beam are reranked on them in
    the same call, and distances are exact.  ``scratch`` may be shared by the searchers of one thread.  The graph may
    grow meanwhile; its capacity and the arrays of codes and rows are fixed.
    """

    __slots__ = ("_call", "_entry", "_exact", "_scratch", "_sources", "codes", "graph", "quick")

    def __init__(self, graph: Graph, codes: Codes, exact: RowCodes | None = None,
                 scratch: Scratch | None = None) -> None:
        self.graph, self.codes = graph, codes
        self._exact = None if exact is None or exact.family == codes.family else exact
        self._scratch = scratch or Scratch()
        self._entry = kernels.search_for(codes.family, None if self._exact is None else self._exact.family)
        for array in (codes.codes, codes.aux):
            if len(array) < graph.count:
                raise ValueError(f"{len(array)} rows of codes are too few for a graph of {graph.count} vertices")
        plan = np.zeros(kernels.P_ITEMS, np.int64)
        plan[kernels.P_GRAPH] = address(graph.context)
        plan[kernels.P_SCRATCH] = address(self._scratch.context)
        _describe(plan, kernels.P_CODES, codes)
        _describe(plan, kernels.P_ROWS, codes if self._exact is None else self._exact)
        self._call = Call(plan)
        self._sources: list[Codes] = [codes] if self._exact is None else [codes, self._exact]
        self.quick: Quick | None = None

    def search(self, queries: npt.NDArray[Any] | Prepared, *, k: int, ef: int, keep: int = 0,
               allowed: Bits | None = None, count: int | None = None, mode: Mode = "post",
               stop: Stop = None) -> Found:
        """The ``k`` nearest vertices to each query, as far as a beam of ``ef`` (at least ``k``) finds them.

        ``queries``: (nq, row_items) stored dtype, or prepared by the codes when nothing is reranked.  ``keep``: how
        many of a beam are reranked (0: all).  ``allowed``: a bitset of ordinals; others are no results.
        ``mode="post"`` walks all vertices and suits filters that leave a good part; ``"filtered"`` walks allowed ones,
        reaching over others, and suits narrow ones; where a filter leaves nothing near a query, what it does leave is
        scanned instead in either mode.  Only vertices below ``count`` (default: the published count) are
        seen.  ``stop`` int32 (1,): set non-zero by another thread, it ends the search within some hops; what was found
        by then is the answer.
        """
        count = self.graph.count if count is None else min(count, self.graph.count)
        if allowed is not None:
            matches = _matches(allowed, count)
            if matches < count:
                return self._filtered(queries, k, ef, keep, frozen(allowed), matches, count, mode, stop)
        return self._run(queries, k, ef, keep, None, 0, count, mode, stop)

    def _filtered(self, queries: npt.NDArray[Any] | Prepared, k: int, ef: int, keep: int, words: Bits, matches: int,
                  count: int, mode: Mode, stop: Stop) -> Found:
        """Walk where the filter leaves something near the query, scan what it leaves where that is far away.

        A graph leads to what is near.  When hardly any of a query's nearest vertices is allowed, far fewer than the
        filter's share of all, the nearest allowed ones lie on a front all around it, and no walk finds them reliably.
        """
        nq = len(queries)
        found = Found(np.full((nq, k), -1, np.int32), np.full((nq, k), np.inf, np.float32))
        far = np.zeros(nq, bool)
        expected = _PROBE * matches / count
        # a filter that leaves most (deletions, usually) is not worth a probe with every query
        if expected >= _PROBE_MEANS and not (mode == "post" and matches >= _COMMON * count):
            probe = self._run(queries, _PROBE, _PROBE, 1, None, 0, count, mode, stop)
            bits = words[probe.ordinals >> 6] >> (probe.ordinals & 63).astype(np.uint64) & np.uint64(1)
            far = np.where(probe.ordinals >= 0, bits, 0).sum(axis=1) < expected / _PROBE_FAR
            found = Found(found.ordinals, found.distances, probe.hops, probe.comparisons, probe.stopped)
        found = _patched(found, queries, ~far, lambda part: self._run(part, k, ef, keep, words, matches, count, mode,
                                                                     stop))
        # what came back short is scanned too, so that k are found whenever there are k
        far |= (found.ordinals >= 0).sum(axis=1) < min(k, matches)
        if found.stopped:
            return found
        return _patched(found, queries, far, lambda part: self._scan(part, k, max(k, keep or ef), words, count, stop))

    def _scan(self, queries: npt.NDArray[Any] | Prepared, k: int, keep: int, words: Bits, count: int,
              stop: Stop) -> Found:
        if self._exact is None or isinstance(queries, Prepared):
            return flat.scan(self.codes, queries, k=k, hi=count, allowed=words, stop=stop)
        found = flat.scan(self.codes, queries, k=keep, hi=count, allowed=words, stop=stop)
        return rerank_on(self._exact, self._exact.prepare(queries), found, k)

    def _run(self, queries: npt.NDArray[Any] | Prepared, k: int, ef: int, keep: int, words: Bits | None, matches: int,
             count: int, mode: Mode, stop: Stop) -> Found:
        graph = self.graph
        quick = self._quick_for(queries, k)
        call = quick or self._call
        holders = None if quick else self._prepare(queries)
        ef = max(ef, k)
        kind, cap, seeds = _admission(words, matches, count, ef, mode)
        self._scratch.reserve(graph.capacity, cap, graph.m0)
        plan = call.plan
        numbers = (k, ef, cap, max(k, min(keep, ef)) if keep else ef, kind, count)
        if numbers != call.numbers:
            plan[kernels.P_K:kernels.P_QUERIES] = call.numbers = numbers
        items = call.items
        if words is not None or call.filtered:
            call.filtered = words is not None
            items[kernels.P_ALLOWED] = 0 if words is None else address(words)
            items[kernels.P_SEEDS] = 0 if seeds is None else address(seeds)
            items[kernels.P_SEED_COUNT] = 0 if seeds is None else len(seeds)
        items[kernels.P_STOP] = _NO_STOP_AT if stop is None else address(stop)
        if quick:
            self._entry(plan)
            ordinals, distances = quick.taken(k)
        else:
            nq = len(queries)
            ordinals, distances = np.empty((nq, k), np.int32), np.empty((nq, k), np.float32)
            plan[kernels.P_QUERIES] = nq
            plan[kernels.P_ORDINALS:kernels.P_CODES] = address(ordinals), address(distances)
            self._entry(plan)
        del holders
        at = kernels.P_TALLY
        return Found(ordinals, distances, items[at + T_HOPS], items[at + T_COMPARISONS], items[at + T_STOPPED] != 0)

    def _quick_for(self, queries: npt.NDArray[Any] | Prepared, k: int) -> "Quick | None":
        """The call of one query, with this one prepared in it, if that can be."""
        if len(queries) != 1 or k > _QUICK_K or isinstance(queries, Prepared):
            return None
        quick = self.quick or self.lone()
        if quick is None:
            return None
        for preparer in quick.preparers:
            preparer(queries)
        return quick

    def lone(self) -> "Quick | None":
        """The call of one query, which :mod:`vecdb.ann.hnsw.lone` may use; None if not all codes are quick."""
        if self.quick is None and all(isinstance(source, QuickCodes) for source in self._sources):
            self.quick = Quick(self._call.plan, self._sources)
        return self.quick

    def run_lone(self, quick: "Quick", numbers: "Numbers") -> None:
        """Search without a filter for what is prepared in ``quick``, which then holds the results and counts.

        ``numbers``: of :meth:`numbers_of`.
        """
        items = quick.items
        if numbers is not quick.numbers:
            self._scratch.reserve(self.graph.capacity, numbers[2], self.graph.m0)
            quick.plan[kernels.P_K:kernels.P_QUERIES] = quick.numbers = numbers
        if quick.filtered:
            quick.filtered = False
            items[kernels.P_ALLOWED] = items[kernels.P_SEEDS] = items[kernels.P_SEED_COUNT] = 0
        items[kernels.P_STOP] = _NO_STOP_AT
        self._entry(quick.plan)

    @staticmethod
    def numbers_of(k: int, ef: int, keep: int, count: int) -> "Numbers":
        """What the plan of a call without a filter says besides addresses; arguments as of :meth:`search`."""
        ef = max(ef, k)
        kind, cap, _ = _admission(None, 0, count, ef, "post")
        return k, ef, cap, max(k, min(keep, ef)) if keep else ef, kind, count

    def _prepare(self, queries: npt.NDArray[Any] | Prepared) -> object:
        """Describe the queries in the plan; return what must be kept alive meanwhile."""
        if isinstance(queries, Prepared):
            if self._exact is not None:
                raise ValueError("queries must not be prepared when they are to be reranked")
            prepared = [queries]
        else:
            prepared = [source.prepare(queries) for source in self._sources]
        for at, part in zip(_QUERIES_AT, prepared, strict=False):
            self._call.plan[at:at + 4] = _query_items(part.codes, part.aux)
        return prepared


class Call:
    """A plan, and what stands in it already: ``numbers``, and whether it points at a bitset.

    ``items`` are the plan's: a memory view takes one item in a tenth of the time that an array does.
    """

    __slots__ = ("filtered", "items", "numbers", "plan")

    def __init__(self, plan: npt.NDArray[np.int64]) -> None:
        self.plan = plan
        self.items: memoryview = plan.data
        self.numbers: tuple[int, ...] = ()
        self.filtered = True


class Quick(Call):
    """The call of a single query, with the memory for its prepared forms and its results kept from call to call."""

    __slots__ = ("distances", "forms", "ordinals", "preparers", "shown", "spare")

    def __init__(self, plan: npt.NDArray[np.int64], sources: Sequence[Any]) -> None:
        super().__init__(plan.copy())
        self.preparers: list[Callable[[npt.NDArray[Any]], None]] = []
        self.forms: list[tuple[Any, npt.NDArray[Any], npt.NDArray[np.float32]]] = []
        for at, source in zip(_QUERIES_AT, sources, strict=False):
            prepared = source.prepare(np.zeros((1, source.space.row_items), source.space.row_dtype))
            codes, aux = prepared.codes.copy(), prepared.aux.copy()
            self.preparers.append(source.preparer(codes, aux))
            self.plan[at:at + 4] = _query_items(codes, aux)
            self.forms.append((source, codes, aux))
        self.spare: Any = None
        """Of who uses the call in a way of his own (:mod:`vecdb.ann.hnsw.lone`)."""
        self.ordinals = np.empty((1, _QUICK_K), np.int32)
        self.distances = np.empty((1, _QUICK_K), np.float32)
        self.shown = (_QUICK_K, self.ordinals, self.distances)
        self.plan[kernels.P_QUERIES] = 1
        self.plan[kernels.P_ORDINALS:kernels.P_CODES] = address(self.ordinals), address(self.distances)

    def taken(self, k: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Copies of the first ``k`` results."""
        if self.shown[0] != k:
            self.shown = (k, self.ordinals[:, :k], self.distances[:, :k])
        return self.shown[1].copy(), self.shown[2].copy()


def search(graph: Graph, codes: Codes, queries: npt.NDArray[Any] | Prepared, *, k: int, ef: int,
           allowed: Bits | None = None, count: int | None = None, mode: Mode = "post", scratch: Scratch | None = None,
           stop: Stop = None) -> Found:
    """One search without rerank and without a :class:`Searcher` to keep; see :meth:`Searcher.search`."""
    return Searcher(graph, codes, scratch=scratch).search(queries, k=k, ef=ef, allowed=allowed, count=count, mode=mode,
                                                          stop=stop)


def search_within(graph: Graph, codes: Codes, queries: npt.NDArray[Any] | Prepared, *, radius: float, k: int, ef: int,
                  allowed: Bits | None = None, count: int | None = None, mode: Mode = "post",
                  scratch: Scratch | None = None, stop: Stop = None) -> Found:
    """The nearest ``k`` vertices within the raw distance ``radius`` (as ``codes`` measure it), per query.

    A beam that ends nearer than ``radius`` may have left out some: it is widened until it reaches beyond the radius
    or holds ``k``; above the widest beam the rows are scanned.
    """
    prepared = queries if isinstance(queries, Prepared) else codes.prepare(queries)
    count = graph.count if count is None else min(count, graph.count)
    searcher = Searcher(graph, codes, scratch=scratch)
    ordinals = np.full((len(prepared), k), -1, np.int32)
    distances = np.full((len(prepared), k), np.inf, np.float32)
    pending = np.arange(len(prepared))
    hops = compared = 0
    stopped = False
    width = max(ef, 16)
    while len(pending) and not stopped:
        part = Prepared(prepared.codes[pending], prepared.aux[pending])
        scans = width > min(MAX_EF, max(count // 4, 1))
        wide = k if scans else min(width, MAX_EF)
        if scans:
            found = flat.scan_within(codes, part, radius=radius, k=k, hi=count, allowed=allowed, stop=stop)
        else:
            found = searcher.search(part, k=wide, ef=wide, allowed=allowed, count=count, mode=mode, stop=stop)
        hops, compared, stopped = hops + found.hops, compared + found.comparisons, found.stopped
        inside = found.distances[:, :k] <= np.float32(radius)
        take = inside.shape[1]
        ordinals[pending, :take] = np.where(inside, found.ordinals[:, :take], -1)
        distances[pending, :take] = np.where(inside, found.distances[:, :take], np.inf)
        # a beam that is not full has seen all it can reach; a full one that ends inside the radius leaves a doubt
        pending = pending[:0] if scans or wide >= k else pending[found.distances[:, -1] <= np.float32(radius)]
        width *= _WIDEN
    return Found(ordinals, distances, hops, compared, stopped)


def _matches(allowed: Bits, count: int) -> int:
    if len(allowed) * 64 < count:
        raise ValueError(f"allowed has {len(allowed)} words, too few for {count} vertices")
    return int(count_bits(frozen(allowed), count))


def _admission(words: Bits | None, matches: int, count: int, ef: int,
               mode: Mode) -> tuple[int, int, npt.NDArray[np.int32] | None]:
    """The kernel's mode, the beam's room and the seeds."""
    if words is None:
        # one more than ef: the entry itself may be barred, as a vertex above the count
        return PLAIN, ef + 1, None
    if mode == "filtered":
        seeds = np.empty(SEEDS, np.int32)
        return FILTERED, ef + 1, seeds[:sample_bits(words, count, seeds)]
    # room for the barred vertices that stand between ef allowed ones, were the filter independent of the query,
    # twice over
    return POST, int(min(count, 2 * ef * count // max(matches, 1) + 64, 4 * MAX_EF)) + 1, None


def _patched(found: Found, queries: npt.NDArray[Any] | Prepared, which: npt.NDArray[np.bool_],
             search: Callable[[Any], Found]) -> Found:
    """``found`` with the rows of ``which`` queries as ``search`` answers them, its counts added."""
    if not which.any():
        return found
    if isinstance(queries, Prepared):
        part = search(Prepared(queries.codes[which], queries.aux[which]))
    else:
        part = search(queries[which])
    ordinals, distances = found.ordinals.copy(), found.distances.copy()
    ordinals[which], distances[which] = part.ordinals, part.distances
    return Found(ordinals, distances, found.hops + part.hops, found.comparisons + part.comparisons,
                 found.stopped or part.stopped)


def _describe(plan: npt.NDArray[np.int64], at: int, codes: Codes) -> None:
    plan[at:at + 5] = (address(codes.codes), len(codes.codes), codes.codes.shape[1], address(codes.aux),
                       codes.aux.shape[1])


def _query_items(codes: npt.NDArray[Any], aux: npt.NDArray[np.float32]) -> tuple[int, int, int, int]:
    return address(codes), codes.shape[1], address(aux), aux.shape[1]
