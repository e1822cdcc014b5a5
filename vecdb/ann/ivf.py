# mypy: disable-error-code="no-untyped-call"
"""Inverted lists: rows go to their nearest of ``nlist`` centroids, and a query reads the lists nearest to it.

*IVF-Flat* scores the segment's own rows, or any quantizer's codes of them; *IVF-PQ* scores product codes of what a row
differs from its centroid by.  That residual needs no table per list: with ``x = c + r`` and ``r'`` its code,

    |q - c - r'|^2 = |q - c|^2 + (|r'|^2 + 2 c.r') - 2 q.r',

the first term belongs to (query, list), the second to the row (one float32 kept beside its code), and the third is a
sum over one set of tables per query.  Cosine is half of that over normalised vectors, dot is ``-q.c - q.r'``.
Source: Jegou, Douze, Schmid, TPAMI 2011; faiss's precomputed tables use the same decomposition, but keep the second
term per (list, centroid) and not per row.

Whatever is scored lies in list order: scattered rows, prefetched, cost 1.2 (784 float32) to 1.8 times (100) as much.
IVF-Flat therefore copies a segment's rows, unless they are in list order already.  A segment that is sealed can
put them so (``rows[ivf.ordinals]``) and call :meth:`Ivf.reordered`: then the rows are shared, and may stay on disk.

How many lists to read (``nprobe``) depends on the data more than on anything one could compute from sizes, so it is
measured when the lists are built: for a sample of rows the true neighbours are found by exact scan, and the
smallest ``nprobe`` is kept whose lists hold 97 % of them.  Measured on 50,000 rows in 894 lists with the data sets' own
queries: glove-100 reads 102 lists for a recall@10 of .972, wordnet-minilm-384 66 for .964, fashion-mnist-784 10 for
.980; IVF-PQ (d / 4) with 4 candidates a result reranked .959, .964 and .984.  A filter leaves fewer rows to a list:
reading goes on past ``nprobe`` until enough allowed rows were scored, so a query returns k matches whenever k exist.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vecdb.ann import flat
from vecdb.ann.codes import Codes, Prepared, RowCodes, frozen
from vecdb.ann.found import Found
from vecdb.ann.memory import allocate
from vecdb.ann.quantize import code_bytes, state_bytes
from vecdb.ann.quantize.base import QuantizedCodes, Quantizer, Rows, State
from vecdb.ann.quantize.kmeans import Floats, Run, as_floats, assign, blocks, kmeans, serial
from vecdb.ann.quantize.pq import Codebooks, layout
from vecdb.ann.space import Space
from vecdb.core.errors import Unsupported
from vecdb.core.schema import IndexKind, IndexSpec, Metric, Quantization, VectorType
from vecdb.kernels import kmeans as kernels
from vecdb.kernels.ivf import search_for

Progress = Callable[[float], None]
"""Told the share of the work that is done, 0 to 1."""

POINTS_PER_CENTROID = 32
COARSE_ITERATIONS = 8
CALIBRATION_QUERIES = 200
CALIBRATION_K = 10
CALIBRATION_RECALL = 0.97
"""Above the 0.95 that is promised: sampled rows sit in the data's midst, queries need not."""

ENOUGH_PER_RESULT = 20
ENOUGH_PER_RESULT_FILTERED = 128
"""Rows scored per result wanted before reading may stop: under a filter the results lie farther apart than the rows
``nprobe`` was measured on (glove-100, 50,000 rows, 10 % allowed: recall 0.935 with 20, 0.96 with 128)."""

_BLOCK_ROWS = 16_384
_TABLE_BYTES = 16 << 20
_NO_WORDS = frozen(np.zeros(0, np.uint64))


def default_nlist(count: int) -> int:
    """Lists for ``count`` rows: four times the root, and no fewer than eight rows a list."""
    return max(1, min(round(4 * math.sqrt(count)), count // 8))


def _widened(nprobe: int, k: int, filtered: bool) -> int:
    """``nprobe`` for what lies farther away than the ten nearest of all rows, on which it was measured.

    Recall on 50,000 rows, before and after: half of them allowed, wordnet-minilm-384 .944 and .960, glove-100 .970 and
    .983; k = 100, .912 and .946, .942 and .972.
    """
    widening = (1.5 if filtered else 1.0) * (1 + 0.5 * math.log2(max(k, 40) / 40))
    return math.ceil(nprobe * widening)


def planned_bytes(space: Space, count: int, spec: IndexSpec, *, shared_rows: bool = False) -> int:
    """What :attr:`Ivf.memory_bytes` will be for ``count`` rows; ``shared_rows``: they will be in list order."""
    lists = spec.nlist or default_nlist(count)
    own = lists * (4 * space.dim + 8) + 8 + 4 * count + 4 * (-(-lists // 16) * 16) * (space.dim + 1)
    if spec.kind is not IndexKind.IVF_PQ:
        return own + (0 if shared_rows else count * (space.row_bytes + (4 if space.has_aux else 0)))
    kind = Quantization.OPQ if spec.quantization is Quantization.OPQ else Quantization.PQ
    codes = replace(spec, quantization=kind)
    return own + count * (code_bytes(codes, space) + 4) + state_bytes(codes, space)


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """Product codes of residuals: the codebooks, and codes and row terms in list order."""

    space: Space
    books: Codebooks
    codes: npt.NDArray[np.uint8]
    aux: npt.NDArray[np.float32]

    def prepare(self, queries: Rows) -> Prepared:
        """Tables of products with the query: scaled by -2 (l2) or -1; one KiB a subspace and query."""
        tables = np.empty((len(queries), self.books.table_items), np.float32)
        qaux = np.empty((len(queries), 1), np.float32)
        self.prepare_into(queries, tables, qaux)
        return Prepared(tables, qaux)

    def prepare_into(self, queries: Rows, qcodes: Floats, qaux: Floats) -> None:
        """As :meth:`prepare`, into arrays of its shapes."""
        scale = -2.0 if self.space.metric is Metric.L2 else -1.0
        self.books.fill_tables(as_floats(self.space, queries), qcodes, squared=False, scale=scale)
        qaux[...] = 0.0

    def as_codes(self) -> Codes:
        return QuantizedCodes("pq.residual", self.codes, self.aux, self)


@dataclass(frozen=True, slots=True, eq=False)
class Ivf:
    """Lists over ``count`` rows of a segment; immutable, safe to search from many threads.

    ``centroids`` float32 (nlist, dim); list ``l`` holds ``ordinals[offsets[l]:offsets[l + 1]]`` (int64 (nlist + 1),
    int32 (count)), ascending.  ``scored``: what is scored, in list order.  ``nprobe``: lists read by default.
    """

    space: Space
    centroids: Floats
    offsets: npt.NDArray[np.int64]
    ordinals: npt.NDArray[np.int32]
    nprobe: int
    scored: Codes
    residual: Residual | None
    centroids_t: Floats = field(init=False)
    half_norms: Floats = field(init=False)

    def __post_init__(self) -> None:
        centroids_t, half_norms = kernels.dimension_major(self.centroids)
        object.__setattr__(self, "centroids_t", frozen(centroids_t))
        object.__setattr__(self, "half_norms", frozen(half_norms))

    @classmethod
    def build(cls, space: Space, rows: Rows, count: int, *, nlist: int = 0, spec: IndexSpec | None = None,
              quantizer: Quantizer | None = None, aux: npt.NDArray[np.float32] | None = None, seed: int = 0,
              run: Run = serial, on_progress: Progress | None = None) -> Self:
        """Cluster ``rows[:count]`` (n, row_width), borrowed; IVF-Flat keeps a copy in list order.

        ``spec``: its ``kind`` ``ivf_pq`` makes product codes of residuals (rotated when ``quantization`` is ``opq``),
        its ``nlist`` and ``nprobe`` are used when not 0.  ``quantizer``: its codes are scored instead of the rows.
        ``aux``: the rows' inverse norms where the space has them; computed when not given.  Raises ``Unsupported``
        for binary vectors: k-means has no meaning over bits.
        """
        if space.vector_type is VectorType.BINARY:
            raise Unsupported("IVF of binary vectors is not offered; use 'flat' or 'hnsw'", index="ivf_flat")
        spec = spec or IndexSpec(kind=IndexKind.IVF_FLAT)
        tell = on_progress or (lambda _share: None)
        rows = rows[:count]
        exact = RowCodes(space, rows, _norms(space, rows, aux))
        lists = nlist or spec.nlist or default_nlist(count)
        centroids = _coarse(space, rows, count, lists, seed, run)
        tell(0.3)
        labels = _labels(space, rows, count, centroids, run)
        order = np.argsort(labels, kind="stable").astype(np.int32)
        offsets = np.concatenate(([0], np.cumsum(np.bincount(labels, minlength=lists)))).astype(np.int64)
        tell(0.6)
        made = cls(space, frozen(centroids), frozen(offsets), frozen(order), 1, exact, None)
        nprobe = min(spec.nprobe, lists) or made._calibrated(exact, rows, labels, run)
        tell(0.8)
        made = replace(made, nprobe=nprobe)
        if spec.kind is IndexKind.IVF_PQ:
            made = made._with_residuals(rows, labels, spec, seed, run)
        elif quantizer is not None:
            codes, extra = quantizer.encode(rows[made.ordinals, :space.row_items], run)
            made = replace(made, scored=quantizer.codes(codes, extra))
        else:
            made = replace(made, scored=_in_list_order(exact, made.ordinals))
        tell(1.0)
        return made

    def _with_residuals(self, rows: Rows, labels: npt.NDArray[np.int32], spec: IndexSpec, seed: int, run: Run) -> Self:
        rotated = spec.quantization is Quantization.OPQ
        cut = layout(self.space.dim, spec.subspaces, rotated)
        picked = np.sort(np.random.default_rng(seed).permutation(len(labels))[:16_384])
        points = as_floats(self.space, rows[picked]) - self.centroids[labels[picked]]
        if not len(points):
            points = np.zeros((1, self.space.dim), np.float32)
        books = Codebooks.train(points, cut, rotated=rotated, seed=seed, run=run)
        codes = np.zeros((len(labels), cut.subspaces), np.uint8)
        terms = np.zeros((len(labels), 1), np.float32)

        def block(lo: int, hi: int) -> Callable[[], None]:
            def encode() -> None:
                members = self.ordinals[lo:hi]
                centres = self.centroids[labels[members]]
                codes[lo:hi] = books.encode(as_floats(self.space, rows[members]) - centres)
                if self.space.metric is not Metric.DOT:
                    back = books.decode(codes[lo:hi])
                    square = np.einsum("nd,nd->n", back, back + 2 * centres, dtype=np.float64)
                    terms[lo:hi, 0] = square if self.space.metric is Metric.L2 else square / 2

            return encode

        run([block(lo, hi) for lo, hi in blocks(len(labels), 4_096)])
        residual = Residual(self.space, books, codes, terms)
        return replace(self, scored=residual.as_codes(), residual=residual)

    def reordered(self, rows: Rows, aux: npt.NDArray[np.float32] | None = None) -> Self:
        """These lists over rows that were put in list order (``rows[ivf.ordinals]``); IVF-Flat then shares them."""
        ordinals = frozen(np.arange(len(self.ordinals), dtype=np.int32))
        if not isinstance(self.scored, RowCodes):
            return replace(self, ordinals=ordinals)
        rows = rows[:len(ordinals)]
        return replace(self, ordinals=ordinals, scored=RowCodes(self.space, rows, _norms(self.space, rows, aux)))

    @property
    def nlist(self) -> int:
        return len(self.centroids)

    @property
    def memory_bytes(self) -> int:
        """Bytes of all it holds, codes (or copied rows) included; rows shared with the segment are not counted."""
        own: list[npt.NDArray[Any]] = [self.centroids, self.centroids_t, self.half_norms, self.offsets, self.ordinals]
        if not (isinstance(self.scored, RowCodes) and _identity(self.ordinals)):
            own += [self.scored.codes, self.scored.aux]
        if self.residual is not None:
            books = self.residual.books
            own += [*books.state().values(), books.centroids_t, books.half_norms]
        return sum(array.nbytes for array in own)

    def _ranked(self, queries: Floats, depth: int) -> tuple[npt.NDArray[np.int32], Floats]:
        """The ``depth`` lists nearest to each query, nearest first, and the constants of their rows' scores."""
        products = np.empty((len(queries), self.centroids_t.shape[1]), np.float32)
        kernels.products(frozen(queries), self.centroids_t, 0, len(queries), products)
        away = -products if self.space.metric is Metric.DOT else self.half_norms - products
        if depth < self.nlist:
            near = np.argpartition(away[:, :self.nlist], depth - 1, axis=1)[:, :depth]
            kept = np.take_along_axis(away, near, axis=1)
            turn = np.argsort(kept, axis=1, kind="stable")
            probes = np.take_along_axis(near, turn, axis=1).astype(np.int32)
        else:
            probes = np.argsort(away[:, :self.nlist], axis=1, kind="stable").astype(np.int32)
        bases = np.take_along_axis(away, probes, axis=1)
        if self.residual is None:
            return probes, np.zeros_like(bases)
        if self.space.metric is not Metric.DOT:
            bases += np.einsum("qd,qd->q", queries, queries)[:, None] / 2
            bases *= np.float32(2 if self.space.metric is Metric.L2 else 1)
        return probes, bases

    def _calibrated(self, exact: RowCodes, rows: Rows, labels: npt.NDArray[np.int32], run: Run) -> int:
        """The smallest ``nprobe`` whose lists hold the wanted share of sampled rows' true neighbours."""
        count = len(labels)
        if not count:
            return 1
        sample = np.unique(np.linspace(0, count - 1, CALIBRATION_QUERIES).astype(np.int64))
        near = np.full((len(sample), CALIBRATION_K), -1, np.int32)

        def block(lo: int, hi: int) -> Callable[[], None]:
            def neighbours() -> None:
                asked = sample[lo:hi]
                found = flat.scan(exact, rows[asked, :self.space.row_items], k=CALIBRATION_K + 1).ordinals
                for row, ordinals, out in zip(asked, found, near[lo:hi], strict=True):
                    others = ordinals[(ordinals != row) & (ordinals >= 0)][:CALIBRATION_K]
                    out[:len(others)] = others

            return neighbours

        run([block(lo, hi) for lo, hi in blocks(len(sample), 25)])
        if not (near >= 0).any():  # a single row has no neighbours
            return 1
        probes, _ = self._ranked(as_floats(self.space, rows[sample]), self.nlist)
        rank = np.argsort(probes, axis=1, kind="stable")
        depth = np.take_along_axis(rank, labels[near].astype(np.int64), axis=1)[near >= 0]
        needed = int(np.ceil(CALIBRATION_RECALL * len(depth)))
        return int(np.sort(depth)[needed - 1]) + 1

    def search(self, queries: Rows, k: int, nprobe: int = 0, allowed: npt.NDArray[np.uint64] | None = None,
               stop: npt.NDArray[np.int32] | None = None) -> Found:
        """The ``k`` nearest of the lists read: raw distances, exact for IVF-Flat, approximate on codes (rerank them).

        ``queries`` (nq, row_items) in stored dtype.  ``nprobe`` 0: the calibrated one; a large k or a filter widens it.
        ``allowed``: bitset over ordinals; reading goes on until ``128 k`` allowed rows were scored or all lists are
        read.
        ``hops`` counts lists, ``comparisons`` rows.  ``stop`` as in :func:`vecdb.ann.hnsw.search`.
        """
        least = min(_widened(nprobe or self.nprobe, k, allowed is not None), self.nlist)
        enough = (ENOUGH_PER_RESULT if allowed is None else ENOUGH_PER_RESULT_FILTERED) * k
        nq, count = len(queries), len(self.ordinals)
        found = np.full((nq, k), -1, np.int32)
        distances = np.full((nq, k), np.inf, np.float32)
        tally = np.zeros(3, np.int64)
        if not count:
            return Found(found, distances)
        # lists may be small or empty: unfiltered reading needs more than nprobe only where k is large
        depth = self.nlist if allowed is not None else min(self.nlist, max(least, 2 * enough * self.nlist // count + 1))
        words = _NO_WORDS if allowed is None else frozen(allowed)
        if allowed is not None and len(words) * 64 < count:
            raise ValueError(f"allowed has {len(words)} words, too few for {count} rows")
        heap = np.empty(k, np.uint64)
        width = 4 * self.residual.books.table_items if self.residual is not None else 4096
        step = max(1, _TABLE_BYTES // width)
        entry = search_for(self.scored.family)
        flag = flat.NO_STOP if stop is None else frozen(stop)
        for lo, hi in blocks(nq, step):
            if flag[0]:
                tally[2] = 1
                break
            prepared = self.scored.prepare(queries[lo:hi])
            probes, bases = self._ranked(as_floats(self.space, queries[lo:hi]), depth)
            entry(self.scored.codes, self.scored.aux, prepared.codes, prepared.aux, self.offsets, self.ordinals,
                  frozen(probes), frozen(bases), least, enough, k, words, allowed is not None, flag, heap,
                  found[lo:hi], distances[lo:hi], tally)
        return Found(found, distances, int(tally[0]), int(tally[1]), bool(tally[2]))

    def arrays(self) -> State:
        """Everything but the segment's rows, for a file: see :meth:`from_arrays`."""
        out: State = {"centroids": self.centroids, "offsets": self.offsets, "ordinals": self.ordinals,
                      "nprobe": np.array([self.nprobe], np.int64)}
        if not isinstance(self.scored, RowCodes):
            out |= {"codes": self.scored.codes, "aux": self.scored.aux}
        if self.residual is not None:
            out |= {f"books.{name}": array for name, array in self.residual.books.state().items()}
        return out

    @classmethod
    def from_arrays(cls, space: Space, arrays: Mapping[str, npt.NDArray[Any]], *, rows: Rows | None = None,
                    aux: npt.NDArray[np.float32] | None = None, quantizer: Quantizer | None = None) -> Self:
        """What :meth:`arrays` came from; arrays are borrowed, may be mapped read-only.

        IVF-Flat needs the segment's ``rows`` (and ``aux``), lists of a quantizer's codes need that ``quantizer``.
        """
        parts = {name: frozen(array) for name, array in arrays.items()}
        residual = None
        if "books.centroids" in parts:
            books = Codebooks.from_state(space.dim, {name.removeprefix("books."): array for name, array in
                                                     parts.items() if name.startswith("books.")})
            residual = Residual(space, books, parts["codes"], parts["aux"])
            scored = residual.as_codes()
        elif "codes" in parts:
            if quantizer is None:
                raise ValueError("these lists hold a quantizer's codes: from_arrays needs the quantizer")
            scored = quantizer.codes(parts["codes"], parts["aux"])
        else:
            if rows is None:
                raise ValueError("these lists hold no codes: from_arrays needs the segment's rows")
            rows = rows[:len(parts["ordinals"])]
            scored = _in_list_order(RowCodes(space, rows, _norms(space, rows, aux)), parts["ordinals"])
        return cls(space, parts["centroids"], parts["offsets"], parts["ordinals"], int(parts["nprobe"][0]), scored,
                   residual)


def _norms(space: Space, rows: Rows, aux: npt.NDArray[np.float32] | None) -> npt.NDArray[np.float32]:
    return space.aux(rows) if aux is None else aux[:len(rows)]


def _identity(ordinals: npt.NDArray[np.int32]) -> bool:
    return bool(np.array_equal(ordinals, np.arange(len(ordinals))))


def _in_list_order(exact: RowCodes, ordinals: npt.NDArray[np.int32]) -> RowCodes:
    """``exact`` itself if the lists follow its order, else a copy that does."""
    if _identity(ordinals):
        return exact
    copy = allocate(exact.codes.shape, exact.codes.dtype)
    for lo, hi in blocks(len(ordinals), _BLOCK_ROWS):
        copy[lo:hi] = exact.codes[ordinals[lo:hi]]
    return RowCodes(exact.space, copy, exact.aux[ordinals].reshape(-1))


def _coarse(space: Space, rows: Rows, count: int, lists: int, seed: int, run: Run) -> Floats:
    size = min(count, lists * POINTS_PER_CENTROID)
    picked = np.sort(np.random.default_rng(seed).permutation(count)[:size])
    if not size:
        return np.zeros((lists, space.dim), np.float32)
    return kmeans(as_floats(space, rows[picked]), lists, seed=seed, iterations=COARSE_ITERATIONS, run=run)


def _labels(space: Space, rows: Rows, count: int, centroids: Floats, run: Run) -> npt.NDArray[np.int32]:
    """The nearest centroid of each row, by l2 whatever the metric: lists are neighbourhoods."""
    labels = np.zeros(count, np.int32)
    for lo, hi in blocks(count, _BLOCK_ROWS):
        labels[lo:hi] = assign(as_floats(space, rows[lo:hi]), centroids, run)[0]
    return labels
