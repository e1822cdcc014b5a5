# mypy: disable-error-code="no-untyped-call"
"""Scalar quantization to 4 bits: sixteen levels a dimension, a quarter byte for each float's byte.

The range of a dimension is what loses least on the sample among a few that cut off both tails: with sixteen
levels a few outliers must not widen every step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vecdb.ann.codes import Codes, Prepared, frozen
from vecdb.ann.quantize.base import METRICS, Encoded, QuantizedCodes, Rows, State, encode_blocks, no_aux, put_floats
from vecdb.ann.quantize.kmeans import Floats, Run, as_floats, serial
from vecdb.ann.space import Space
from vecdb.core.schema import Quantization
from vecdb.kernels import sq4 as kernels

_TAILS = (0.0, 0.001, 0.002, 0.004, 0.007, 0.011, 0.016, 0.023)
_SAMPLE_ROWS = 16_384


def packed_bytes(dim: int) -> int:
    """Bytes of the packed nibbles: 32 for each 64 dimensions begun."""
    return -(-dim // 64) * 32


@dataclass(frozen=True, slots=True, eq=False)
class ScalarQuantizer4:
    """``mid`` and ``step`` float32 (dim): a component is ``mid + step * (code - 7.5)``; step 0 where it is constant."""

    space: Space
    mid: Floats
    step: Floats

    @classmethod
    def train(cls, space: Space, sample: Rows, seed: int = 0, run: Run = serial) -> Self:
        """Choose the ranges from ``sample`` (n >= 1 stored rows), of which at most 16,384 are used."""
        if len(sample) > _SAMPLE_ROWS:
            sample = sample[np.sort(np.random.default_rng(seed).permutation(len(sample))[:_SAMPLE_ROWS])]
        points = as_floats(space, sample)
        best = np.full(space.dim, np.inf)
        mid = np.zeros(space.dim, np.float32)
        step = np.zeros(space.dim, np.float32)
        for tail in _TAILS:
            low, high = np.quantile(points, (tail, 1 - tail), axis=0, method="nearest").astype(np.float64)
            width = (high - low) / 15
            levels = np.clip(np.rint((points - low) / np.where(width > 0, width, 1)), 0, 15)
            loss = np.square(low + width * levels - points).mean(axis=0)
            better = loss < best
            best = np.where(better, loss, best)
            mid = np.where(better, (low + high) / 2, mid).astype(np.float32)
            step = np.where(better, width, step).astype(np.float32)
        return cls(space, frozen(mid), frozen(step))

    @property
    def kind(self) -> Quantization:
        return Quantization.SQ4

    @property
    def code_bytes(self) -> int:
        return packed_bytes(self.space.dim) + 4

    def encode(self, stored: Rows, run: Run = serial) -> Encoded:
        codes = np.zeros((len(stored), self.code_bytes), np.uint8)

        def block(rows: Rows, out: npt.NDArray[np.uint8]) -> None:
            packed = np.zeros((len(rows), packed_bytes(self.space.dim)), np.uint8)
            terms = np.zeros((len(rows), 1), np.float32)
            points = frozen(as_floats(self.space, rows))
            kernels.encode(points, self.mid, self.step, METRICS[self.space.metric], packed, terms[:, 0])
            out[:, :-4] = packed
            put_floats(out, terms)

        encode_blocks(stored, codes, block, run)
        return codes, no_aux(len(stored))

    def prepare(self, queries: Rows) -> Prepared:
        """int8 (nq, 64 a 64 dimensions) and float32 (nq, 2)."""
        qcodes = np.zeros((len(queries), packed_bytes(self.space.dim) * 2), np.int8)
        qaux = np.zeros((len(queries), 2), np.float32)
        self.prepare_into(queries, qcodes, qaux)
        return Prepared(qcodes, qaux)

    def prepare_into(self, queries: Rows, qcodes: npt.NDArray[np.int8], qaux: Floats) -> None:
        """As :meth:`prepare`, into zeroed arrays or those of other queries."""
        points = frozen(as_floats(self.space, queries))
        kernels.prepare(points, self.mid, self.step, METRICS[self.space.metric], qcodes, qaux)

    def codes(self, codes: npt.NDArray[Any], aux: npt.NDArray[np.float32]) -> Codes:
        return QuantizedCodes("sq4", codes, aux, self)

    def reconstruct(self, codes: npt.NDArray[np.uint8]) -> Floats:
        """The vectors the codes stand for, float32 (n, dim)."""
        packed = codes[:, :-4].reshape(len(codes), -1, 32)
        levels = np.concatenate((packed & 15, packed >> 4), axis=2).reshape(len(codes), -1)[:, :self.space.dim]
        return self.mid + self.step * (levels.astype(np.float32) - np.float32(7.5))

    def state(self) -> State:
        return {"mid": self.mid, "step": self.step}

    @classmethod
    def from_state(cls, space: Space, state: Mapping[str, npt.NDArray[Any]]) -> Self:
        return cls(space, frozen(state["mid"]), frozen(state["step"]))
