"""How much memory and disk a collection needs: a pure model of the engine's layouts.

Every component mirrors one array of the engine, by the name ``describe`` reports it under.  A collection is
taken as it rests: everything sealed and indexed, nothing dead.  What depends on the data more than on its shape
(the metadata index, compression in the record store) is an estimate and says so; the rest is exact up to the
random number of upper-level vertices of a graph.

Rows are padded to lines of 64 bytes.  A graph has int32 links, ``2 m`` on level 0 and ``m`` on each further
one; levels are geometric with factor 1/m (Malkov and Yashunin 2018, section 4.1), so ``n / (m - 1)`` upper
links rows are expected over all levels.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

from vecdb.core.errors import InvalidArgument, LimitExceeded
from vecdb.core.schema import (
    AUTO_HNSW_RECORDS,
    CollectionSchema,
    IndexKind,
    IndexSpec,
    Metric,
    Quantization,
    VectorType,
)

LINE_BYTES: Final = 64
MAX_RECORDS: Final = 10**15
PQ_CENTROIDS: Final = 256
ITEM_BYTES: Final = {VectorType.FLOAT32: 4, VectorType.FLOAT16: 2, VectorType.INT8: 1, VectorType.UINT8: 1,
                     VectorType.BINARY: 1}
OTHER_BYTES: Final = 24
"""A record's id, rid and its place by rid, beside vectors, links and codes, in the choice of a layout."""

MIN_CODED_DIM: Final = 32
"""Below this many dimensions ``quantization="auto"`` walks a graph on the vectors themselves: codes would save no
cache line worth a second pass over the best."""

MAX_SEGMENT_RECORDS: Final = 16_000_000
SEAL_RECORDS: Final = 262_144
SEAL_BYTES: Final = 1 << 30
"""Defaults of the engine: the most records of a segment, and what a growing one is sealed at."""
BLOCK_CACHE_BYTES: Final = 64 << 20
WRITE_BUFFER_BYTES: Final = 128 << 20
PROCESS_BYTES: Final = 165 << 20
"""Python, NumPy, Numba with LLVM, and loaded kernels, before any data (measured)."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is to be stored: ``records`` of ``schema``; the rest are averages per record.

    ``id_bytes``: 0 for integer ids, else the bytes of a string id.  ``metadata_bytes``: of one object as JSON;
    ``metadata_fields``: its indexed scalars; ``text_bytes``: of its indexed strings that no other record has (a
    title, a text), each of which is a term of the index.  ``memory_limit``: of vectors, graphs and codes, None for
    no limit: ``quantization="auto"`` makes room by leaving vectors on disk, then by smaller codes.
    """

    records: int
    schema: CollectionSchema
    id_bytes: float = 0.0
    metadata_bytes: float = 0.0
    metadata_fields: float = 0
    text_bytes: float = 0.0
    memory_limit: int | None = None
    max_segment_records: int = MAX_SEGMENT_RECORDS

    def __post_init__(self) -> None:
        if not 1 <= self.records <= MAX_RECORDS:
            raise LimitExceeded("records", f"{self.records} is outside 1..{MAX_RECORDS}", got=self.records,
                                limit=f"1..{MAX_RECORDS}")
        for name in ("id_bytes", "metadata_bytes", "metadata_fields", "text_bytes"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InvalidArgument(name, f"{value} is not a number of at least 0", got=value, limit=">= 0")


@dataclass(frozen=True, slots=True)
class Component:
    """Bytes of one part of a collection; ``estimate`` where data decides, not shape."""

    name: str
    memory_bytes: int
    disk_bytes: int
    formula: str
    estimate: bool = False


@dataclass(frozen=True, slots=True)
class Sizing:
    """Components of a collection at rest, and what comes on top.

    ``process_bytes``: of the process, whatever it holds; ``cache_bytes``: the most its caches and write buffers
    come to, all collections together.  ``building_bytes``: the most that growing, sealing and
    merging take for a while.  ``index``: the settings with what ``auto`` comes to.  ``exceeds``: by how many bytes
    vectors, graphs and codes are above the limit even so, None where they keep it or there is none.
    """

    components: tuple[Component, ...]
    process_bytes: int
    cache_bytes: int
    building_bytes: int
    segments: int
    index: IndexSpec
    exceeds: int | None = None

    @property
    def memory_bytes(self) -> int:
        return sum(one.memory_bytes for one in self.components)

    @property
    def disk_bytes(self) -> int:
        return sum(one.disk_bytes for one in self.components)


def row_bytes(schema: CollectionSchema) -> int:
    """Bytes of a stored row: whole lines of 64."""
    return _lines(schema.row_items * ITEM_BYTES[schema.vector_type])


def _lines(size: int) -> int:
    return -(-size // LINE_BYTES) * LINE_BYTES


def resolve(schema: CollectionSchema, segment_records: int, budget: int | None = None) -> IndexSpec:
    """The index a segment of that many records gets within ``budget`` bytes, with no ``auto`` left in it."""
    spec = schema.index
    kind = spec.kind
    if kind is IndexKind.AUTO:
        kind = IndexKind.FLAT if segment_records < AUTO_HNSW_RECORDS else IndexKind.HNSW
    spec = replace(spec, kind=kind)
    if kind is not IndexKind.HNSW:
        return replace(spec, quantization=Quantization.PQ if kind is IndexKind.IVF_PQ else Quantization.NONE)
    if spec.quantization is not Quantization.AUTO:
        return spec
    if schema.vector_type is VectorType.BINARY:
        return replace(spec, quantization=Quantization.NONE)
    return _fitting(schema, spec, segment_records, budget)


def _fitting(schema: CollectionSchema, spec: IndexSpec, count: int, budget: int | None) -> IndexSpec:
    """The fastest layout that fits: vectors go to disk first, then codes shrink."""
    is_float = schema.vector_type in (VectorType.FLOAT32, VectorType.FLOAT16)
    plain = Quantization.SQ8 if is_float and schema.dim >= MIN_CODED_DIM else Quantization.NONE
    ladder = [(plain, spec.bits, False), (Quantization.SQ8, 8, True), (Quantization.RABITQ, 4, True),
              (Quantization.RABITQ, 2, True)]
    for codes, bits, on_disk in ladder:
        if (on_disk and codes is Quantization.SQ8 and not is_float) or (spec.vectors_on_disk and not on_disk):
            continue
        step = replace(spec, quantization=codes, bits=bits, vectors_on_disk=on_disk)
        each = code_bytes(schema, step) + (0 if on_disk else row_bytes(schema)) + _graph_bytes(spec.m) + OTHER_BYTES
        if budget is None or count * each <= budget:
            return step
    return replace(spec, quantization=Quantization.RABITQ, bits=1, vectors_on_disk=True)


def _graph_bytes(m: int) -> float:
    return 8 * m + 5 + 4 * m / (m - 1)


def size(work: Workload) -> Sizing:
    """Return what a workload takes, component by component."""
    schema, n = work.schema, work.records
    segments = max(1, -(-n // work.max_segment_records))
    spec = resolve(schema, n // segments, None if work.memory_limit is None else work.memory_limit // segments)
    components = [_vectors(schema, spec, n)]
    if spec.kind is IndexKind.HNSW:
        components.append(_graph(spec, n))
    if spec.kind in (IndexKind.IVF_FLAT, IndexKind.IVF_PQ):
        components.append(_inverted(schema, spec, n, segments))
    elif spec.quantization is not Quantization.NONE:
        components.append(_codes(schema, spec, n, segments))
    over = 0 if work.memory_limit is None else sum(one.memory_bytes for one in components) - work.memory_limit
    components += [_ids(work, reordered=spec.kind is not IndexKind.FLAT), _live(n), _metadata(work), _store(work)]
    return Sizing(tuple(components), PROCESS_BYTES, BLOCK_CACHE_BYTES + WRITE_BUFFER_BYTES,
                  _building(work, spec, components), segments, spec, over if over > 0 else None)


def _vectors(schema: CollectionSchema, spec: IndexSpec, n: int) -> Component:
    row = row_bytes(schema)
    has_norms = schema.metric is Metric.COSINE and schema.vector_type in (VectorType.INT8, VectorType.UINT8)
    norms = 4 * n if has_norms else 0
    formula = f"n · {row}" + (" + 4 n inverse norms" if has_norms else "")
    if spec.vectors_on_disk:
        return Component("vectors", 0, n * row, f"{formula}, mapped from disk")
    return Component("vectors", n * row + norms, n * row, formula)


def _graph(spec: IndexSpec, n: int) -> Component:
    base = n * (2 * spec.m * 4 + 1 + 4)
    upper = round(n / (spec.m - 1)) * spec.m * 4
    return Component("graph", base + upper, base + upper, f"n · (8·{spec.m} + 5) + n/{spec.m - 1} · 4·{spec.m}")


def code_bytes(schema: CollectionSchema, spec: IndexSpec) -> int:
    """Bytes of one vector's code, with the terms that stand in it."""
    dim, kind = schema.dim, spec.quantization
    if kind is Quantization.SQ8:
        return _lines(dim + (4 if schema.metric is Metric.L2 else 0))
    if kind is Quantization.SQ4:
        return -(-dim // 64) * 32 + 4
    if kind is Quantization.RABITQ:
        return -(-dim // 64) * 64 * spec.bits // 8 + 8
    if kind in (Quantization.PQ, Quantization.OPQ):
        return _subspaces(dim, spec.subspaces)
    return 0


def _subspaces(dim: int, asked: int) -> int:
    """Bytes of a product code: as asked, or one for each four dimensions begun."""
    wanted = min(asked or -(-dim // 4), dim)
    return wanted if asked else -(-dim // -(-dim // wanted))


def _codes(schema: CollectionSchema, spec: IndexSpec, n: int, segments: int) -> Component:
    code = code_bytes(schema, spec)
    books = 0
    if spec.quantization in (Quantization.PQ, Quantization.OPQ):
        books += PQ_CENTROIDS * schema.dim * 4
    if spec.quantization is Quantization.OPQ:
        books += schema.dim * schema.dim * 4
    return Component("codes", n * code, n * code + segments * books, f"n · {code}")


def lists_of(spec: IndexSpec, segment_records: int) -> int:
    """How many inverted lists a segment gets, unless told: four times the root, and no fewer than 8 rows a list."""
    return spec.nlist or max(1, min(round(4 * math.sqrt(segment_records)), segment_records // 8))


def _inverted(schema: CollectionSchema, spec: IndexSpec, n: int, segments: int) -> Component:
    """Ordinals, residual codes with a term (IVF-Flat reads the segment's own rows), and centroids, twice."""
    dim = schema.dim
    lists = lists_of(spec, n // segments)
    turned = -(-lists // 16) * 16
    stored, fixed = 4 * lists * dim + 8 * (lists + 1), 4 * turned * (dim + 1)
    scored = 0
    if spec.kind is IndexKind.IVF_PQ:
        subspaces = _subspaces(dim, spec.subspaces)
        book = 4 * PQ_CENTROIDS * subspaces * -(-dim // subspaces)
        scored, stored, fixed = subspaces + 4, stored + book, fixed + book + 4 * PQ_CENTROIDS * subspaces
    disk = n * (4 + scored) + segments * stored
    return Component("lists", disk + segments * fixed, disk,
                     f"n · (4 + {scored}) + {_size_words(stored + fixed)} of centroids a segment")


def _size_words(number: int) -> str:
    """Bytes in KiB or MiB, for formulas."""
    return f"{number / 1024:.0f} KiB" if number < 1 << 20 else f"{number / (1 << 20):.1f} MiB"


def _ids(work: Workload, *, reordered: bool) -> Component:
    n = work.records
    one = 8 + 1 + work.id_bytes if work.id_bytes else 8
    by_rid = 12 if reordered else 0
    return Component("ids", round(n * (one + 8 + by_rid)), round(n * (one + 16)),
                     f"n · ({one:g} + 8 record numbers{' + 12 their order' if by_rid else ''})")


def _live(n: int) -> Component:
    return Component("live", 8 * -(-n // 64), 0, "n / 8")


INDEX_BYTES_PER_VALUE: Final = 5.0
"""Of the metadata index, per record and scalar: four for its place in a list, less in a bitmap, more if rare."""


def _metadata(work: Workload) -> Component:
    one = work.metadata_fields * INDEX_BYTES_PER_VALUE + work.text_bytes
    return Component("metadata", 0, round(work.records * one), f"n · {one:g}, mapped from disk", estimate=True)


STORE_BYTES_PER_RECORD: Final = 48
"""Rows of one record in the store without its metadata: id, number, digest and their keys, after compression."""

STORE_COMPRESSION: Final = 0.6
"""What LZ4 leaves of metadata as JSON."""


def _store(work: Workload) -> Component:
    one = STORE_BYTES_PER_RECORD + work.id_bytes + STORE_COMPRESSION * work.metadata_bytes
    return Component("records", 0, round(work.records * one), f"n · {one:g}", estimate=True)


def _building(work: Workload, spec: IndexSpec, components: list[Component]) -> int:
    """The growing segment and the copy that a merge makes of the largest segment."""
    per_record = sum(c.memory_bytes for c in components) / work.records
    row = row_bytes(work.schema)
    growing = min(work.records, SEAL_RECORDS, max(1, SEAL_BYTES // row))
    graph = 8 * spec.m + 5 if spec.kind is IndexKind.HNSW else 0
    largest = min(work.records, work.max_segment_records)
    return round(growing * (row + graph + 64) + largest * (per_record + (row if spec.vectors_on_disk else 0)))
