"""Codes in place of vectors: what a graph or a scan walks over before the best are reranked on stored rows.

Every quantizer is trained from a sample, is immutable, and is a few arrays (``state``).  Its codes are a family of the
scorer registry, so beams, scans and inverted lists take them like rows.

Bytes a vector for dimension d: ``sq8`` d (+ 4 for l2), in whole 64-byte lines; ``sq4`` d / 2 + 4, ``rabitq``
bits * d / 8 + 8 (both d in whole 64s); ``pq``/``opq`` one a subspace, by default d / 4.

Measured: recall@10 of a scan over the codes of 20,000 vectors, 100 queries, after rerank of ``oversample * 10``
(glove-100 cosine, wordnet-minilm-384 cosine, fashion-mnist-784 l2), and nanoseconds a score on one AVX-512 core:

    codes          x1               x2               x4               x10              ns
    sq4            .85  .94  .97    .99  1.0  1.0    1.0  1.0  1.0    1.0  1.0  1.0     3   8  18
    rabitq 1 bit   .42  .76  .76    .61  .93  .95    .75  .98  .99    .91  1.0  1.0     4   6   9
    rabitq 2 bits  .69  .87  .88    .88  .99  .99    .96  1.0  1.0    1.0  1.0  1.0     5  10  19
    rabitq 3 bits  .83  .93  .93    .98  1.0  1.0    1.0  1.0  1.0    1.0  1.0  1.0     6  12  23
    rabitq 4 bits  .90  .95  .96    1.0  1.0  1.0    1.0  1.0  1.0    1.0  1.0  1.0     3   8  18
    rabitq 8 bits  .99  1.0  1.0    1.0  1.0  1.0    1.0  1.0  1.0    1.0  1.0  1.0     4  16  32
    pq, d / 4      .65  .86  .92    .85  .99  1.0    .95  1.0  1.0    .99  1.0  1.0     7  25  78
    pq, d / 8      .40  .76  .85    .56  .94  .99    .70  .99  1.0    .86  1.0  1.0     5  13  24
    opq, d / 4     .67  .87  .95    .86  .99  1.0    .96  1.0  1.0    .99  1.0  1.0     7  25  66
    opq, d / 8     .41  .79  .89    .57  .94  1.0    .73  .99  1.0    .89  1.0  1.0     4  12  27

What decides is bits a dimension, and the dimension: an estimate's error falls with 2^bits and with sqrt(d).
:func:`default_oversample` is fitted to this: on 50,000 vectors of each set, a scan with it and rerank gives .978
(rabitq 1 bit, glove-100) to 1.0 for sq8, sq4, rabitq 1, 2, 3, 4 and 8 bits, pq and opq d / 4; pq d / 8 gives .972 on
glove-100.

Walked by a graph (glove-100, 50,000, m 16, ef_construction 200, ef 100, all of the beam reranked), recall@10 is .957 to
.959 on float32 rows, sq8, sq4, rabitq 3, 4 and 8 bits, .951 on rabitq 2 bits, .949 on pq d / 4, .875 on rabitq 1 bit
(.947 with ef 200): a beam is its own oversampling.
"""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from vecdb.ann.quantize import rabitq
from vecdb.ann.quantize.base import QuantizedCodes, Quantizer, Rows, State
from vecdb.ann.quantize.kmeans import Run, serial
from vecdb.ann.quantize.pq import ProductQuantizer, layout
from vecdb.ann.quantize.rabitq import RabitQuantizer
from vecdb.ann.quantize.sq4 import ScalarQuantizer4, packed_bytes
from vecdb.ann.quantize.sq8 import ScalarQuantizer8
from vecdb.ann.space import LINE_BYTES, Space
from vecdb.core.errors import InvalidArgument, Unsupported
from vecdb.core.schema import IndexSpec, Metric, Quantization, VectorType

__all__ = ["ProductQuantizer", "QuantizedCodes", "Quantizer", "RabitQuantizer", "Run", "ScalarQuantizer4",
           "ScalarQuantizer8", "State", "code_bytes", "default_oversample", "from_state", "serial", "state_bytes",
           "train"]

_REFERENCE_DIM = 128
_OVERSAMPLE = {1: (24.0, 1.2, 4.0, 32.0), 2: (8.0, 0.8, 2.5, 12.0), 3: (3.0, 0.5, 2.0, 4.0), 4: (2.0, 0.0, 2.0, 2.0)}
"""By bits a dimension: oversample at 128 dimensions, how it falls with the dimension, its least and its most."""
_OVERSAMPLE_FINE = 1.5
_OVERSAMPLE_COARSE = 64.0


def default_oversample(kind: Quantization, bits: int, dim: int, subspaces: int = 0) -> float:
    """Candidates per result to rerank so that recall@10 of 0.95 is reached: see the table above.

    ``bits`` are RaBitQ's; ``subspaces`` PQ's (0: its default).
    """
    if kind is Quantization.SQ8:
        return _OVERSAMPLE_FINE
    if kind is Quantization.SQ4:
        bits = 4
    elif kind in (Quantization.PQ, Quantization.OPQ):
        bits = 8 // layout(dim, subspaces).width
    elif kind is not Quantization.RABITQ:
        return 1.0
    if bits > 4:
        return _OVERSAMPLE_FINE
    if bits < 1:
        return _OVERSAMPLE_COARSE
    base, fall, least, most = _OVERSAMPLE[bits]
    return min(max(round(base * float((_REFERENCE_DIM / dim) ** fall), 1), least), most)


def code_bytes(spec: IndexSpec, space: Space) -> int:
    """Bytes a vector that ``spec``'s codes will take, without training them; 0 for none."""
    kind = spec.quantization
    if kind is Quantization.SQ8:
        own = space.dim + (4 if space.metric is Metric.L2 else 0)
        return -(-own // LINE_BYTES) * LINE_BYTES
    if kind is Quantization.SQ4:
        return packed_bytes(space.dim) + 4
    if kind is Quantization.RABITQ:
        return rabitq.code_bytes(space.dim, spec.bits)
    if kind in (Quantization.PQ, Quantization.OPQ):
        return layout(space.dim, spec.subspaces, kind is Quantization.OPQ).subspaces
    return 0


def state_bytes(spec: IndexSpec, space: Space) -> int:
    """Bytes of the quantizer itself, whatever the number of vectors (codebooks are held in two forms)."""
    kind = spec.quantization
    if kind in (Quantization.SQ8, Quantization.SQ4):
        return 8 * space.dim
    if kind is Quantization.RABITQ:
        size = rabitq.turned_dim(space.dim)
        return 4 * (space.dim + rabitq.rounds(size) * size)
    if kind in (Quantization.PQ, Quantization.OPQ):
        cut = layout(space.dim, spec.subspaces, kind is Quantization.OPQ)
        rotation = 4 * cut.padded**2 // cut.blocks if kind is Quantization.OPQ else 0
        return 2 * 1024 * cut.padded + 1024 * cut.subspaces + rotation
    return 0


def _check(kind: Quantization, space: Space) -> None:
    if kind in (Quantization.NONE, Quantization.AUTO):
        raise InvalidArgument("quantization", f"{kind.value!r} names no codes", got=kind.value,
                              limit="sq8, sq4, pq, opq, rabitq")
    if space.vector_type is VectorType.BINARY:
        raise Unsupported("quantization of binary vectors is not offered: they are one bit a dimension already",
                          quantization=kind.value)


def train(spec: IndexSpec, space: Space, sample: Rows, *, seed: int = 0, run: Run = serial) -> Quantizer:
    """The quantizer that ``spec.quantization`` names, trained on ``sample`` (n >= 1 stored rows, borrowed).

    The same sample and seed give the same quantizer, whatever ``run`` does with the thunks it is given.
    """
    kind = spec.quantization
    _check(kind, space)
    if kind is Quantization.SQ8:
        return ScalarQuantizer8.train(space, sample, seed, run)
    if kind is Quantization.SQ4:
        return ScalarQuantizer4.train(space, sample, seed, run)
    if kind is Quantization.RABITQ:
        return RabitQuantizer.train(space, sample, spec.bits, seed, run)
    return ProductQuantizer.train(space, sample, spec.subspaces, rotated=kind is Quantization.OPQ, seed=seed, run=run)


def from_state(kind: Quantization, space: Space, state: Mapping[str, npt.NDArray[Any]]) -> Quantizer:
    """The quantizer whose :meth:`Quantizer.state` was ``state`` (borrowed, may be mapped read-only)."""
    _check(kind, space)
    if kind is Quantization.SQ8:
        return ScalarQuantizer8.from_state(space, state)
    if kind is Quantization.SQ4:
        return ScalarQuantizer4.from_state(space, state)
    if kind is Quantization.RABITQ:
        return RabitQuantizer.from_state(space, state)
    return ProductQuantizer.from_state(space, state)
