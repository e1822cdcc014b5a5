"""Codes in place of vectors: what a graph or a scan walks over before the best are reranked on stored rows."""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from vecdb.ann.quantize.base import QuantizedCodes, Quantizer, Rows, State
from vecdb.ann.quantize.kmeans import Run, serial
from vecdb.ann.quantize.pq import ProductQuantizer
from vecdb.ann.quantize.rabitq import RabitQuantizer
from vecdb.ann.quantize.sq4 import ScalarQuantizer4
from vecdb.ann.space import Space
from vecdb.core.errors import InvalidArgument, Unsupported
from vecdb.core.schema import IndexSpec, Quantization, VectorType

__all__ = ["ProductQuantizer", "QuantizedCodes", "Quantizer", "RabitQuantizer", "Run", "ScalarQuantizer4", "State",
           "from_state", "serial", "train"]


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
    if kind is Quantization.SQ4:
        return ScalarQuantizer4.train(space, sample, seed, run)
    if kind is Quantization.RABITQ:
        return RabitQuantizer.train(space, sample, spec.bits, seed, run)
    return ProductQuantizer.train(space, sample, spec.subspaces, rotated=kind is Quantization.OPQ, seed=seed, run=run)


def from_state(kind: Quantization, space: Space, state: Mapping[str, npt.NDArray[Any]]) -> Quantizer:
    """The quantizer whose :meth:`Quantizer.state` was ``state`` (borrowed, may be mapped read-only)."""
    _check(kind, space)
    if kind is Quantization.SQ4:
        return ScalarQuantizer4.from_state(space, state)
    if kind is Quantization.RABITQ:
        return RabitQuantizer.from_state(space, state)
    return ProductQuantizer.from_state(space, state)
