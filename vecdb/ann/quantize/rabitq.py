# mypy: disable-error-code="no-untyped-call"
"""RaBitQ, 1 to 8 bits a dimension: needs no training but a mean, and its estimate of a distance is unbiased.

The method and its sources are told in :mod:`vecdb.kernels.rabitq`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vecdb.ann.codes import Codes, Prepared, frozen
from vecdb.ann.quantize.base import (
    METRICS,
    Encoded,
    QuantizedCodes,
    Rows,
    State,
    encode_blocks,
    no_aux,
    put_floats,
    scalar,
)
from vecdb.ann.quantize.kmeans import Floats, Run, as_floats, serial
from vecdb.ann.space import Space
from vecdb.core.schema import Quantization
from vecdb.kernels import rabitq as kernels


def turned_dim(dim: int) -> int:
    """Dimensions after padding and rotation: whole words of 64."""
    return -(-dim // 64) * 64


def rounds(size: int) -> int:
    """Rounds of the rotation of ``size`` dimensions, enough to make a turned axis look like a random direction.

    Measured by the fourth moment of the matrix (3 for a random one): at powers of two 3.0 after four rounds; at 960
    dimensions, where a round transforms 512 of them, 15.7 after three, 6.1 after four and 3.2 after six.
    """
    return 4 if size & (size - 1) == 0 else 6


def code_bytes(dim: int, bits: int) -> int:
    """Bytes a vector: ``bits`` a turned dimension and two float32."""
    return turned_dim(dim) * bits // 8 + 8


@dataclass(frozen=True, slots=True, eq=False)
class RabitQuantizer:
    """``centre`` float32 (dim); ``signs`` float32 (rounds, turned dim), each 1 or -1; ``bits`` a dimension."""

    space: Space
    bits: int
    centre: Floats
    signs: Floats

    @classmethod
    def train(cls, space: Space, sample: Rows, bits: int = 1, seed: int = 0, run: Run = serial) -> Self:
        """Take the sample's mean as the centre and draw the rotation from ``seed``."""
        size = turned_dim(space.dim)
        centre = as_floats(space, sample).mean(axis=0, dtype=np.float64).astype(np.float32)
        draws = np.random.default_rng(seed).integers(0, 2, (rounds(size), size))
        return cls(space, bits, frozen(centre), frozen((2 * draws - 1).astype(np.float32)))

    @property
    def kind(self) -> Quantization:
        return Quantization.RABITQ

    @property
    def code_bytes(self) -> int:
        return code_bytes(self.space.dim, self.bits)

    @property
    def family(self) -> str:
        return f"rabitq.{self.bits}"

    @property
    def in_planes(self) -> bool:
        """Whether codes are bit planes (uint64) and not nibbles or bytes (uint8)."""
        return self.bits not in (4, 8)

    def encode(self, stored: Rows, run: Run = serial) -> Encoded:
        wide = self.in_planes
        shape = (len(stored), self.code_bytes // 8 if wide else self.code_bytes)
        codes = np.zeros(shape, np.uint64 if wide else np.uint8)

        def block(rows: Rows, out: npt.NDArray[Any]) -> None:
            values = np.zeros((len(rows), self.signs.shape[1]), np.uint8)
            terms = np.zeros((len(rows), 2), np.float32)
            points = frozen(as_floats(self.space, rows))
            kernels.encode(points, self.centre, self.signs, self.bits, METRICS[self.space.metric], values, terms)
            self._pack(values, out)
            put_floats(out, terms)

        encode_blocks(stored, codes, block, run)
        return codes, no_aux(len(stored))

    def _pack(self, values: npt.NDArray[np.uint8], out: npt.NDArray[Any]) -> None:
        if self.bits == 8:
            out[:, :-8] = values
        elif self.bits == 4:
            pairs = values.reshape(len(values), -1, 2, 32)
            out[:, :-8] = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(len(values), -1)
        else:
            kernels.pack_planes(frozen(values), self.bits, out)

    def prepare(self, queries: Rows) -> Prepared:
        """int8 components (nq, turned dim), or their bit planes (uint64), and float32 (nq, 3)."""
        size = self.signs.shape[1]
        planes = self.in_planes
        qcodes = np.zeros((len(queries), size // 8 if planes else size), np.uint64 if planes else np.int8)
        qaux = np.zeros((len(queries), 3), np.float32)
        self.prepare_into(queries, qcodes, qaux)
        return Prepared(qcodes, qaux)

    def prepare_into(self, queries: Rows, qcodes: npt.NDArray[Any], qaux: Floats) -> None:
        """As :meth:`prepare`, into arrays of its shapes."""
        values = np.empty((len(queries), self.signs.shape[1]), np.int8) if self.in_planes else qcodes
        points = frozen(as_floats(self.space, queries))
        kernels.prepare(points, self.centre, self.signs, self.bits, METRICS[self.space.metric], values, qaux)
        if self.in_planes:
            kernels.query_planes(frozen(values), qcodes)

    def codes(self, codes: npt.NDArray[Any], aux: npt.NDArray[np.float32]) -> Codes:
        return QuantizedCodes(self.family, codes, aux, self)

    def state(self) -> State:
        return {"bits": np.array([self.bits], np.int64), "centre": self.centre, "signs": self.signs.astype(np.int8)}

    @classmethod
    def from_state(cls, space: Space, state: Mapping[str, npt.NDArray[Any]]) -> Self:
        return cls(space, scalar(state, "bits"), frozen(state["centre"]), frozen(state["signs"].astype(np.float32)))
