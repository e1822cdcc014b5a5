"""Scalar quantization to 8 bits: a quarter of float32's bytes, nearly its order of neighbours.

Each dimension has a range of its own, which loses least on the sample among a few that cut off both tails; data that
are whole numbers within 256 steps are kept without loss.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vecdb.ann.codes import Codes, Prepared, address, frozen
from vecdb.ann.memory import allocate
from vecdb.ann.quantize.base import Encoded, Rows, State, encode_blocks, no_aux
from vecdb.ann.quantize.kmeans import Floats, Run, as_floats, serial
from vecdb.ann.space import LINE_BYTES, Space
from vecdb.core.schema import Metric, Quantization
from vecdb.kernels import sq8 as kernels

_TAILS = (0.0, 0.0001, 0.0003, 0.001, 0.002)
_SAMPLE_ROWS = 16_384


@dataclass(frozen=True, slots=True, eq=False)
class ScalarQuantizer8:
    """``mid`` and ``step`` float32 (dim): a component is ``mid + step * (code - 128)``; step 0 where it is constant."""

    space: Space
    mid: Floats
    step: Floats

    @classmethod
    def train(cls, space: Space, sample: Rows, seed: int = 0, run: Run = serial) -> Self:
        """Choose the ranges from ``sample`` (n >= 1 stored rows), of which at most 16,384 are used."""
        if len(sample) > _SAMPLE_ROWS:
            sample = sample[np.sort(np.random.default_rng(seed).permutation(len(sample))[:_SAMPLE_ROWS])]
        points = np.sort(as_floats(space, sample), axis=0)
        best = np.full(space.dim, np.inf)
        mid, step = np.zeros(space.dim), np.zeros(space.dim)
        last = len(points) - 1
        for tail in _TAILS:
            cut = int(last * tail)
            low, high = points[cut].astype(np.float64), points[last - cut].astype(np.float64)
            width = (high - low) / 255
            levels = np.clip(np.rint((points - low) / np.where(width > 0, width, 1)), 0, 255)
            loss = np.square(low + width * levels - points).mean(axis=0)
            better = loss < best
            best = np.where(better, loss, best)
            mid = np.where(better, low + 128 * width, mid)
            step = np.where(better, width, step)
        return cls(space, frozen(mid.astype(np.float32)), frozen(step.astype(np.float32)))

    @property
    def kind(self) -> Quantization:
        return Quantization.SQ8

    @property
    def family(self) -> str:
        return "sq8.l2" if self._is_l2 else "sq8.dot"

    @property
    def _is_l2(self) -> bool:
        return self.space.metric is Metric.L2

    @property
    def code_bytes(self) -> int:
        own = self.space.dim + (kernels.TERM_BYTES if self._is_l2 else 0)
        return -(-own // LINE_BYTES) * LINE_BYTES

    def encode(self, stored: Rows, run: Run = serial) -> Encoded:
        codes = allocate((len(stored), self.code_bytes), np.uint8)

        def block(rows: Rows, out: npt.NDArray[np.uint8]) -> None:
            terms = np.zeros(len(rows), np.float32)
            kernels.encode(frozen(as_floats(self.space, rows)), self.mid, self.step, out, terms)
            if self._is_l2:
                out[:, -kernels.TERM_BYTES:] = terms.view(np.uint8).reshape(len(rows), kernels.TERM_BYTES)

        encode_blocks(stored, codes, block, run)
        return codes, no_aux(len(stored))

    def prepare(self, queries: Rows) -> Prepared:
        """int8 (nq, code_bytes) and float32 (nq, 2)."""
        qcodes = np.zeros((len(queries), self.code_bytes), np.int8)
        qaux = np.zeros((len(queries), 2), np.float32)
        constant = 1.0 if self.space.metric is Metric.COSINE else 0.0
        kernels.prepare(frozen(as_floats(self.space, queries)), self.mid, self.step, self._is_l2, constant,
                        np.empty(self.space.dim, np.float32), qcodes, qaux)
        return Prepared(qcodes, qaux)

    def codes(self, codes: npt.NDArray[Any], aux: npt.NDArray[np.float32]) -> Codes:
        return Codes8(self, frozen(codes), frozen(aux))

    def reconstruct(self, codes: npt.NDArray[np.uint8]) -> Floats:
        """The vectors the codes stand for, float32 (n, dim)."""
        return self.mid + self.step * (codes[:, :self.space.dim].astype(np.float32) - np.float32(128))

    def state(self) -> State:
        return {"mid": self.mid, "step": self.step}

    @classmethod
    def from_state(cls, space: Space, state: Mapping[str, npt.NDArray[Any]]) -> Self:
        return cls(space, frozen(state["mid"]), frozen(state["step"]))


@dataclass(frozen=True, slots=True, eq=False)
class Codes8:
    """Codes (n, code_bytes) of a quantizer (:class:`vecdb.ann.codes.QuickCodes`)."""

    quantizer: ScalarQuantizer8
    codes: npt.NDArray[np.uint8]
    aux: Floats

    @property
    def family(self) -> str:
        return self.quantizer.family

    @property
    def space(self) -> Space:
        return self.quantizer.space

    def prepare(self, queries: Rows) -> Prepared:
        return self.quantizer.prepare(queries)

    def preparer(self, codes: npt.NDArray[np.int8], aux: Floats) -> Callable[[Rows], None]:
        space, has_aux = self.space, self.space.has_aux
        query = np.zeros((1, space.dim), np.float32)
        arrays, plan = self._one(query, codes, aux)

        def prepare(vector: Rows, _held: object = arrays) -> None:
            query[:] = as_floats(space, vector) if has_aux else vector
            kernels.prepare_one(plan)

        return prepare

    def former(self, form: npt.NDArray[np.int64], query: Floats, codes: npt.NDArray[np.int8], aux: Floats
               ) -> Callable[[], bool]:
        """:class:`vecdb.ann.codes.InPlaceCodes`."""
        arrays, plan = self._one(query, codes, aux)
        entry = kernels.form_and_prepare

        def prepare(_held: object = arrays) -> bool:
            return entry(form, plan)  # type: ignore[no-any-return]

        return prepare

    def _one(self, query: Floats, codes: npt.NDArray[np.int8], aux: Floats
             ) -> tuple[tuple[npt.NDArray[Any], ...], npt.NDArray[np.int64]]:
        """The plan of one query's preparation, and what it points to."""
        quantizer, space = self.quantizer, self.space
        arrays: tuple[npt.NDArray[Any], ...] = (query, quantizer.mid, quantizer.step,
                                                np.empty(space.dim, np.float32), codes, aux)
        return arrays, np.array([space.dim, space.metric is Metric.L2, space.metric is Metric.COSINE,
                                 *(address(array) for array in arrays)], np.int64)
