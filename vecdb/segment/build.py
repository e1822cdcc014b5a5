"""Making a sealed segment out of pinned views: sealing, merging and compaction are this one job.

The largest part goes first and, if it has a graph, the others' records are inserted into a copy of that graph
(after dead vertices were taken out of it), which costs what is new, not what is there.  Otherwise the graph is
built from nothing.  Then vertices are reordered for locality, the beam's width is measured on a sample, and
everything is written and synced; the caller reads it back, checksums and all, before anybody relies on it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vecdb.ann.codes import Codes, RowCodes
from vecdb.ann.hnsw import Graph, Run, consolidate, grow, permute, reorder
from vecdb.ann.ivf import Ivf
from vecdb.ann.memory import allocate
from vecdb.ann.quantize import Quantizer, default_oversample, train
from vecdb.ann.space import Space
from vecdb.core.ids import RecordId
from vecdb.core.schema import CollectionSchema, IndexKind, IndexSpec, Quantization
from vecdb.metadata import merge
from vecdb.segment.bits import head, members
from vecdb.segment.calibrate import SAMPLE, calibrate
from vecdb.segment.choice import Choice, choose
from vecdb.segment.files import write_arrays
from vecdb.segment.growing import GrowingView
from vecdb.segment.ids import pack_ids
from vecdb.segment.index import SEED, SealedAnn
from vecdb.segment.sealed import INDEX, RECORDS, VECTORS, SealedSegment, SealedView

Report = Callable[[str, int, int], None]
"""``(stage, done, total)``; may raise to end the job."""

COPY_ROWS = 8_192
GATHERED = "gathered.tmp"
TRAIN_SAMPLE = 65_536
"""Rows a quantizer learns from: 256 per centroid of an 8-bit codebook, FAISS's upper bound."""


@dataclass(slots=True)
class _Coded:
    """A quantizer with the codes of every row."""

    quantizer: Quantizer
    codes: npt.NDArray[Any]
    aux: npt.NDArray[np.float32]

    def view(self) -> Codes:
        return self.quantizer.codes(self.codes, self.aux)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where large arrays lie while a segment is built: memory, or scratch files where vectors stay on disk."""

    directory: Path | None

    def take(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        if self.directory is None or not shape[0]:
            return allocate(shape, dtype)
        return np.memmap(self.directory / f"{name}.scratch", dtype, "w+", shape=shape)

    def permuted(self, name: str, rows: npt.NDArray[Any], order: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
        """``rows[order]``."""
        out = self.take(name, rows.shape, rows.dtype)
        for start in range(0, len(order), COPY_ROWS):
            np.take(rows, order[start : start + COPY_ROWS], axis=0, out=out[start : start + COPY_ROWS], mode="clip")
        return out

    def clear(self) -> None:
        if self.directory is not None:
            for path in self.directory.glob("*.scratch"):
                path.unlink()


def build_sealed(directory: Path, schema: CollectionSchema, parts: Sequence[GrowingView | SealedView], run: Run,
                 report: Report, budget: int | None = None) -> int:
    """Write the live records of ``parts`` as one sealed segment into the empty ``directory``; return how many.

    ``budget``: bytes of memory the segment may take when it serves (None: no limit).  Raises
    :class:`~vecdb.core.errors.StorageError` if the disk refuses.  Parts with damaged vectors must not be given: their
    records would be lost.
    """
    ordered = sorted(parts, key=lambda view: view.live_count, reverse=True)
    space = Space(schema.metric, schema.vector_type, schema.dim)
    total = sum(view.live_count for view in ordered)
    living = [members(view.live, view.count) for view in ordered]
    choice = choose(schema.index, space, total, budget)
    place = _Place(directory if choice.on_disk else None)
    rows, rids = _gather(space, ordered, living, place.take("gathered", (total, space.row_width), space.row_dtype),
                         report)
    base = _base_graph(ordered[0], living[0], total, schema.index, run) if choice.kind is IndexKind.HNSW else None
    moved = _hold_out(rows, 0 if base is None else base.count) if choice.kind is IndexKind.HNSW else None
    ann, rows, order = _build(choice, schema.index, space, rows, base, place, run, report)
    order = order if moved is None else moved if order is None else moved[order]
    if order is not None:
        rids = rids[order]
    report("writing files", 0, 3)
    ann.write(directory / INDEX)
    report("writing files", 1, 3)
    write_arrays(directory / VECTORS, "vectors", {"rids": rids, "rows": rows},
                 {"count": total, "on_disk": choice.on_disk})
    place.clear()
    report("writing files", 2, 3)
    _write_records(directory, ordered, living, order, rids)
    report("writing files", 3, 3)
    return total


def rebuild_index(segment: SealedSegment, run: Run, report: Report, budget: int | None = None) -> SealedAnn:
    """The index of a segment whose index file was damaged, over its rows where they are (no reordering)."""
    spec = segment.schema.index
    choice = choose(spec, segment.space, segment.count, budget)
    ann, _, _ = _build(choice, spec, segment.space, segment.rows, None, None, run, report)
    return ann


def _gather(space: Space, parts: Sequence[GrowingView | SealedView], living: Sequence[npt.NDArray[np.int64]],
            rows: npt.NDArray[Any], report: Report) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Copy all live records' rows into ``rows``, part after part; return them and their rids."""
    total = len(rows)
    rids = np.empty(total, np.int64)
    at = 0
    for view, ordinals in zip(parts, living, strict=True):
        for start in range(0, len(ordinals), COPY_ROWS):
            chunk = ordinals[start : start + COPY_ROWS]
            rows[at : at + len(chunk)] = view.segment.rows[chunk]
            rids[at : at + len(chunk)] = view.rids(chunk.astype(np.int32))
            at += len(chunk)
            report("copying vectors", at, total)
    return rows, rids


def _base_graph(view: GrowingView | SealedView, living: npt.NDArray[np.int64], total: int,
                spec: IndexSpec, run: Run) -> Graph | None:
    """A graph over the first records gathered, copied from the largest part; None where that does not pay."""
    graph = view.segment.graph if isinstance(view, GrowingView) else view.segment.ann.graph
    if graph is None or graph.m != spec.m or graph.ef_construction != spec.ef_construction:
        return None
    linked = min(graph.count, view.count)
    kept = int(np.searchsorted(living, linked))
    if kept < total // 2:
        return None
    if kept == linked:
        return graph.copy(total)
    segment = view.segment
    base, _ = consolidate(graph, segment.space, segment.rows, segment.aux, head(view.live, linked), run, total)
    return base


def _build(choice: Choice, spec: IndexSpec, space: Space, rows: npt.NDArray[Any], base: Graph | None,
           place: _Place | None, run: Run, report: Report
           ) -> tuple[SealedAnn, npt.NDArray[Any], npt.NDArray[np.int32] | None]:
    """Index ``rows``; return the index, the rows as it numbers them, and the old ordinal of each new one.

    Without a ``place`` the rows stay as they are numbered (order None).
    """
    if choice.kind in (IndexKind.IVF_FLAT, IndexKind.IVF_PQ):
        ann = _build_ivf(choice, spec, space, rows, run, report)
        if place is None or ann.ivf is None:
            return ann, rows, None
        listed = np.array(ann.ivf.ordinals)
        rows = place.permuted("ordered", rows, listed)  # in list order, which IVF-Flat reads without a copy of its own
        ann.ivf = ann.ivf.reordered(rows, space.aux(rows))
        return ann, rows, listed
    if choice.kind is not IndexKind.HNSW:
        return SealedAnn.none(choice.reason), rows, None
    total = len(rows)
    coded = _encode(choice, spec, space, rows, run, report)
    aux = space.aux(rows)
    graph = base or Graph.allocate(total, m=spec.m, ef_construction=spec.ef_construction, seed=SEED)
    walk = coded.view() if coded is not None and choice.quantization is Quantization.SQ8 else None
    ann = SealedAnn(choice.kind, choice.quantization, choice.reason, choice.bits, graph=graph)
    if coded is not None:
        ann.quantizer, ann.codes = coded.quantizer, coded.view()
        ann.oversample = spec.oversample or default_oversample(choice.quantization, choice.bits, space.dim,
                                                               spec.subspaces)

    def tell(done: int) -> None:
        report("building graph", done, total)

    if total >= 4 * SAMPLE:
        grow(graph, space, rows, aux, max(graph.count, total - SAMPLE), run, tell, codes=walk)
    else:
        grow(graph, space, rows, aux, total, run, tell, codes=walk)
    _measure(ann, RowCodes(space, rows, aux), total, spec, report)
    grow(graph, space, rows, aux, total, run, tell, codes=walk)
    order = None
    if place is not None and total > 1:
        report("reordering", 0, 1)
        graph, order = reorder(graph)
        rows, aux = place.permuted("ordered", rows, order), (aux[order] if len(aux) else aux)
        if coded is not None:
            coded.codes, coded.aux = permute(coded.codes, order), coded.aux[order]
            ann.codes = coded.view()
        report("reordering", 1, 1)
        ann.graph = graph
        ann.idle.clear()
    return ann, rows, order


def _hold_out(rows: npt.NDArray[Any], linked: int) -> npt.NDArray[np.int32] | None:
    """Swap a random sample of the rows that no graph holds yet to the end; return the old ordinal of each new one."""
    total = len(rows)
    if total - linked < 2 * SAMPLE:
        return None
    order = np.arange(total, dtype=np.int32)
    first = total - SAMPLE
    picked = linked + np.random.default_rng(SEED).permutation(total - linked)[:SAMPLE]
    outside = np.sort(picked[picked < first])
    free = np.setdiff1d(np.arange(first, total), picked)
    kept = rows[outside].copy()
    rows[outside] = rows[free]
    rows[free] = kept
    order[outside], order[free] = free, outside
    return order


def _encode(choice: Choice, spec: IndexSpec, space: Space, rows: npt.NDArray[Any], run: Run,
            report: Report) -> _Coded | None:
    if choice.quantization is Quantization.NONE:
        return None
    report("training codes", 0, 1)
    step = max(1, len(rows) // TRAIN_SAMPLE)
    quantizer = train(replace(spec, quantization=choice.quantization, bits=choice.bits), space,
                      rows[::step][:TRAIN_SAMPLE, : space.row_items], seed=SEED, run=run)
    report("training codes", 1, 1)
    codes, aux = quantizer.encode(rows, run)
    resident = allocate(codes.shape, codes.dtype)
    np.copyto(resident, codes)
    return _Coded(quantizer, resident, aux)


def _build_ivf(choice: Choice, spec: IndexSpec, space: Space, rows: npt.NDArray[Any], run: Run,
               report: Report) -> SealedAnn:
    ivf = Ivf.build(space, rows, len(rows), spec=replace(spec, kind=choice.kind), seed=SEED, run=run,
                    on_progress=lambda share: report("building lists", round(share * len(rows)), len(rows)))
    ann = SealedAnn(choice.kind, choice.quantization, choice.reason, ivf=ivf, nprobe=spec.nprobe or ivf.nprobe)
    if choice.kind is IndexKind.IVF_PQ:
        ann.oversample = spec.oversample or default_oversample(choice.quantization, choice.bits, space.dim,
                                                               spec.subspaces)
    return ann


def _measure(ann: SealedAnn, rows: RowCodes, total: int, spec: IndexSpec, report: Report) -> None:
    """Set the segment's default beam width, with the rows not linked yet where there are enough of them."""
    if spec.ef_search:
        ann.ef = spec.ef_search
        return
    assert ann.graph is not None
    linked = ann.graph.count
    report("measuring recall", 0, 1)
    asked = np.arange(linked, total, dtype=np.int64)
    if len(asked) < SAMPLE // 2:
        asked = np.unique(np.linspace(0, linked - 1, min(SAMPLE, linked)).astype(np.int64))
    measured = calibrate(rows, asked, linked, lambda queries, k, ef: ann.search(
        rows, queries, k=k, ef=ef, nprobe=0, allowed=None, mode="post", count=linked),
        look=lambda: report("measuring recall", 0, 1))
    ann.ef, ann.measured = measured.width, measured.describe()
    report("measuring recall", 1, 1)


def _write_records(directory: Path, parts: Sequence[GrowingView | SealedView],
                   living: Sequence[npt.NDArray[np.int64]], order: npt.NDArray[np.int32] | None,
                   rids: npt.NDArray[np.int64]) -> None:
    """Ids, rids again and the metadata index, in the new ordinals."""
    total = len(rids)
    place = np.arange(total, dtype=np.int32)
    if order is not None:
        place[order] = np.arange(total, dtype=np.int32)
    ids: list[RecordId] = [0] * total
    indexes = []
    at = 0
    for view, ordinals in zip(parts, living, strict=True):
        mine = place[at : at + len(ordinals)]
        at += len(ordinals)
        moved = np.full(view.count, -1, np.int32)
        moved[ordinals] = mine
        indexes.append((view.segment.metadata, moved))
        for new, one in zip(mine.tolist(), view.ids(ordinals.astype(np.int32)), strict=True):
            ids[new] = one
    merged = merge(indexes, total)
    arrays = {**pack_ids(ids), "rids": rids, "metadata": np.frombuffer(merged.to_bytes(), np.uint8)}
    write_arrays(directory / RECORDS, "records", arrays, {"count": total})
