"""Which index a sealed segment gets, and why: a pure decision, said in ``describe``.

``auto`` scans below :data:`~vecdb.core.schema.AUTO_HNSW_RECORDS` records (a scan of that many answers within
about a millisecond, exactly) and builds HNSW above.  A graph over float vectors is walked on 8-bit codes, which
moves a quarter of the bytes and reranks the best exactly: measured faster than full vectors at the same recall
(DESIGN section 4).

When the segment would not fit the memory it may use, full vectors go to disk first (mapped, read for rerank
only), then the codes shrink: 4, 2 and 1 bits a dimension (RaBitQ), each with more candidates reranked.
"""

from dataclasses import dataclass, replace

from vecdb.ann.quantize import code_bytes
from vecdb.ann.space import Space
from vecdb.core.schema import AUTO_HNSW_RECORDS, IndexKind, IndexSpec, Quantization, VectorType
from vecdb.core.sizing import MIN_CODED_DIM, OTHER_BYTES


@dataclass(frozen=True, slots=True)
class Choice:
    """What is decided, with no ``auto`` left, and the reason in words."""

    kind: IndexKind
    quantization: Quantization
    bits: int
    on_disk: bool
    reason: str


def choose(spec: IndexSpec, space: Space, count: int, budget: int | None = None) -> Choice:
    """Decide index, codes and where vectors lie for ``count`` records within ``budget`` bytes (None: no limit)."""
    kind, why = spec.kind, f"index={spec.kind.value} was asked for"
    if kind is IndexKind.AUTO:
        if count < AUTO_HNSW_RECORDS:
            kind, why = IndexKind.FLAT, f"auto: {count} records, exact scan below {AUTO_HNSW_RECORDS}"
        else:
            kind, why = IndexKind.HNSW, f"auto: {count} records, a graph from {AUTO_HNSW_RECORDS} on"
    if kind is not IndexKind.HNSW:
        codes = Quantization.PQ if kind is IndexKind.IVF_PQ else Quantization.NONE
        return Choice(kind, codes, spec.bits, spec.vectors_on_disk, why)
    if spec.quantization is not Quantization.AUTO:
        what = f"quantization={spec.quantization.value} was asked for"
        return Choice(kind, spec.quantization, spec.bits, spec.vectors_on_disk, f"{why}; {what}")
    if space.vector_type is VectorType.BINARY:
        return Choice(kind, Quantization.NONE, spec.bits, spec.vectors_on_disk, f"{why}; binary vectors are codes")
    return _fitting(spec, space, count, budget, kind, why)


def _fitting(spec: IndexSpec, space: Space, count: int, budget: int | None, kind: IndexKind, why: str) -> Choice:
    """The fastest layout that fits, by the ladder of the module's head."""
    coded = space.is_float and space.dim >= MIN_CODED_DIM
    base = count * (graph_bytes(spec) + OTHER_BYTES)
    rows = count * space.row_bytes
    eight = count * _bytes(spec, space, Quantization.SQ8, 8) if space.is_float else rows
    if not spec.vectors_on_disk and (budget is None or base + rows + (eight if coded else 0) <= budget):
        codes = Quantization.SQ8 if coded else Quantization.NONE
        what = "walked on 8-bit codes, the best reranked on full vectors" if coded else "walked on stored vectors"
        return Choice(kind, codes, spec.bits, False, f"{why}; {what}")
    asked = "since vectors_on_disk" if spec.vectors_on_disk else f"since {_mib(base + rows)} exceed {_mib(budget)}"
    if space.is_float and (budget is None or base + eight <= budget):
        return Choice(kind, Quantization.SQ8, 8, True, f"{why}; 8-bit codes in memory, vectors on disk {asked}")
    for bits in (4, 2):
        if budget is None or base + count * _bytes(spec, space, Quantization.RABITQ, bits) <= budget:
            return Choice(kind, Quantization.RABITQ, bits, True,
                          f"{why}; {bits}-bit codes in memory, vectors on disk {asked}")
    return Choice(kind, Quantization.RABITQ, 1, True, f"{why}; 1-bit codes in memory, vectors on disk {asked}")


def graph_bytes(spec: IndexSpec) -> float:
    """Bytes of links a vertex: 2 m on level 0, level and slot, m for each of the 1 / (m - 1) levels above."""
    return 8 * spec.m + 5 + 4 * spec.m / max(1, spec.m - 1)


def _bytes(spec: IndexSpec, space: Space, kind: Quantization, bits: int) -> int:
    return code_bytes(replace(spec, quantization=kind, bits=bits), space)


def _mib(size: float | None) -> str:
    return "no limit" if size is None else f"{size / (1 << 20):.0f} MiB"
