"""A space: a metric over a stored vector type, and how its rows lie in memory.

Kernels speak *raw* distances, ascending float32: l2 squared, dot ``-dot``, cosine ``1 - cos``, hamming the count of
differing bits.  Rows are padded with zeros to whole 64-byte lines, so kernels need no scalar tail.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vecdb.ann.memory import allocate
from vecdb.core.schema import Metric, VectorType

LINE_BYTES = 64

_DTYPES: dict[VectorType, type[np.generic]] = {
    VectorType.FLOAT32: np.float32, VectorType.FLOAT16: np.float16, VectorType.INT8: np.int8,
    VectorType.UINT8: np.uint8, VectorType.BINARY: np.uint8,
}


@dataclass(frozen=True, slots=True)
class Space:
    """Metric, stored type and dimension (bits for binary vectors) of a collection's vectors."""

    metric: Metric
    vector_type: VectorType
    dim: int

    @property
    def row_dtype(self) -> np.dtype[Any]:
        return np.dtype(_DTYPES[self.vector_type])

    @property
    def row_items(self) -> int:
        """Items of a vector as given: ``dim``, or ``dim / 8`` bytes of packed bits."""
        return self.dim // 8 if self.vector_type is VectorType.BINARY else self.dim

    @property
    def row_width(self) -> int:
        """Items of a padded row: whole lines of 64 bytes."""
        per_line = LINE_BYTES // self.row_dtype.itemsize
        return -(-self.row_items // per_line) * per_line

    @property
    def row_bytes(self) -> int:
        return self.row_width * self.row_dtype.itemsize

    @property
    def is_float(self) -> bool:
        return self.vector_type in (VectorType.FLOAT32, VectorType.FLOAT16)

    @property
    def has_aux(self) -> bool:
        """Whether rows carry an inverse norm: integer vectors cannot be normalised in place."""
        return self.metric is Metric.COSINE and not self.is_float

    def empty(self, capacity: int) -> npt.NDArray[Any]:
        """Zeroed rows (capacity, row_width), pages untouched."""
        return allocate((capacity, self.row_width), self.row_dtype)

    def encode(self, vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """``vectors`` (n, row_items) of any numeric dtype as stored: cast, and normalised for float cosine.

        Floats given to an integer space are rounded and clipped to its range.  A zero vector stays zero.  Validation
        (shape, finiteness) is the caller's.
        """
        kind = self.row_dtype
        if not self.is_float:
            if vectors.dtype.kind == "f":
                info = np.iinfo(kind)
                vectors = np.clip(np.rint(vectors), info.min, info.max)
            return np.ascontiguousarray(vectors, dtype=kind)
        if self.metric is not Metric.COSINE:
            return np.ascontiguousarray(vectors, dtype=kind)
        # scaled by the largest component first, so that neither tiny nor huge vectors lose their norm
        wide = np.asarray(vectors, dtype=np.float32 if vectors.dtype.itemsize <= 4 else np.float64)
        peak = np.abs(wide).max(axis=1, keepdims=True, initial=0.0)
        wide = wide / np.where(peak > 0, peak, 1)
        norm = np.sqrt(np.einsum("ij,ij->i", wide, wide, dtype=np.float64))[:, None]
        return np.ascontiguousarray(wide / np.where(norm > 0, norm, 1), dtype=kind)

    def fill(self, rows: npt.NDArray[Any], lo: int, stored: npt.NDArray[Any]) -> None:
        """Copy ``stored`` (n, row_items) into ``rows[lo:lo+n]``; the padding stays zero."""
        rows[lo:lo + len(stored), :self.row_items] = stored

    def pad(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Padded rows (n, row_width) with a copy of ``stored``."""
        rows = self.empty(len(stored))
        self.fill(rows, 0, stored)
        return rows

    def aux(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Inverse norms float32 (n,) where rows carry them (0 for a zero row), else float32 (0,)."""
        if not self.has_aux:
            return np.zeros(0, np.float32)
        out = np.empty(len(rows), np.float32)
        for lo in range(0, len(rows), 65_536):
            block = rows[lo:lo + 65_536].astype(np.float32)
            square = np.einsum("ij,ij->i", block, block, dtype=np.float64)
            out[lo:lo + 65_536] = np.where(square > 0, 1 / np.sqrt(np.where(square > 0, square, 1)), 0)
        return out

    def to_distance(self, raw: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Users' distances of ``raw`` ones: the root for l2, unchanged otherwise."""
        if self.metric is Metric.L2:
            return np.sqrt(np.maximum(raw, np.float32(0)))
        return raw

    def from_distance(self, distance: float) -> float:
        """The raw bound of a user's inclusive ``distance``, one float32 step wide so that rounding keeps it in."""
        if self.metric is Metric.L2:
            if distance < 0:
                return -1.0
            distance *= distance
        with np.errstate(over="ignore"):
            return float(np.nextafter(np.float32(distance), np.float32(np.inf)))
