"""Which index a sealed segment gets, and why: a pure decision, said in ``describe``.

``auto`` scans below :data:`~vecdb.core.schema.AUTO_HNSW_RECORDS` records (a scan of that many answers within
about a millisecond, exactly) and builds HNSW above.  A graph over float vectors is walked on 8-bit codes,
which moves a quarter of the bytes and reranks the best exactly: measured faster than full vectors at the same
recall (DESIGN section 4).  Codes shrink further only when memory asks for it.
"""

from dataclasses import dataclass

from vecdb.ann.space import Space
from vecdb.core.schema import AUTO_HNSW_RECORDS, IndexKind, IndexSpec, Quantization


@dataclass(frozen=True, slots=True)
class Choice:
    """``spec`` with no ``auto`` left in it, and the reason in words."""

    kind: IndexKind
    quantization: Quantization
    bits: int
    reason: str


SMALL_ROW_ITEMS = 32
"""Dimensions below which codes save no cache line worth a second pass over the best."""


def choose(spec: IndexSpec, space: Space, count: int) -> Choice:
    """Decide index and codes of a segment with ``count`` records."""
    kind, why = spec.kind, f"index={spec.kind.value} was asked for"
    if kind is IndexKind.AUTO:
        if count < AUTO_HNSW_RECORDS:
            kind, why = IndexKind.FLAT, f"auto: {count} records, exact scan below {AUTO_HNSW_RECORDS}"
        else:
            kind, why = IndexKind.HNSW, f"auto: {count} records, a graph from {AUTO_HNSW_RECORDS} on"
    codes, what = _codes(spec, space, kind)
    return Choice(kind, codes, spec.bits, f"{why}; {what}")


def _codes(spec: IndexSpec, space: Space, kind: IndexKind) -> tuple[Quantization, str]:
    if kind is IndexKind.IVF_PQ:
        return Quantization.PQ, "lists of product codes"
    if kind is not IndexKind.HNSW:
        return Quantization.NONE, "full vectors"
    if spec.quantization is not Quantization.AUTO:
        return spec.quantization, f"quantization={spec.quantization.value} was asked for"
    if spec.vectors_on_disk and space.is_float:
        return Quantization.SQ8, "8-bit codes in memory, since full vectors stay on disk"
    if space.is_float and space.dim >= SMALL_ROW_ITEMS:
        return Quantization.SQ8, "walked on 8-bit codes, the best reranked on full vectors"
    return Quantization.NONE, "walked on stored vectors, which are small already"
