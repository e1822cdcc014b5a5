# mypy: disable-error-code="no-untyped-call"
"""What every quantizer offers, and how one is made from an index specification or from stored state."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vecdb.ann.codes import Codes, Prepared, frozen
from vecdb.ann.quantize.kmeans import Run, blocks
from vecdb.ann.space import Space
from vecdb.core.schema import Metric, Quantization

State = dict[str, npt.NDArray[Any]]
Rows = npt.NDArray[Any]
Encoded = tuple[npt.NDArray[Any], npt.NDArray[np.float32]]

_BLOCK_ROWS = 4_096

METRICS = {Metric.L2: 0, Metric.DOT: 1, Metric.COSINE: 2}
"""How kernels name metrics."""


class Quantizer(Protocol):
    """Trained once from a sample; turns stored rows into codes, and queries into what their scorer reads.

    Immutable.  ``state`` is everything there is to it as arrays, a function of (sample, seed) alone.
    """

    @property
    def kind(self) -> Quantization: ...

    @property
    def space(self) -> Space: ...

    @property
    def code_bytes(self) -> int:
        """Bytes a vector, ``aux`` included."""
        ...

    def encode(self, stored: Rows, run: Run = ...) -> Encoded:
        """Codes (n, w) and ``aux`` float32 (n, a) of ``stored`` rows (n, row_items or padded), borrowed."""
        ...

    def codes(self, codes: npt.NDArray[Any], aux: npt.NDArray[np.float32]) -> Codes:
        """What searches take: the arrays are borrowed, read-only views of them are kept."""
        ...

    def state(self) -> State: ...


class Preparer(Protocol):
    """Makes the scorer's form of queries (nq, row_items) in stored dtype."""

    @property
    def space(self) -> Space: ...

    def prepare(self, queries: Rows) -> Prepared: ...

    def prepare_into(self, queries: Rows, qcodes: npt.NDArray[Any], qaux: npt.NDArray[np.float32]) -> None:
        """As ``prepare``, into zeroed arrays or those of other queries."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedCodes:
    """Codes of one family with what prepares queries for them (:class:`vecdb.ann.codes.QuickCodes`)."""

    family: str
    codes: npt.NDArray[Any]
    aux: npt.NDArray[np.float32]
    source: Preparer

    def __post_init__(self) -> None:
        object.__setattr__(self, "codes", frozen(self.codes))
        object.__setattr__(self, "aux", frozen(self.aux))

    @property
    def space(self) -> Space:
        return self.source.space

    def prepare(self, queries: Rows) -> Prepared:
        return self.source.prepare(queries)

    def preparer(self, codes: npt.NDArray[Any], aux: npt.NDArray[np.float32]) -> Callable[[Rows], None]:
        source = self.source
        return lambda query: source.prepare_into(query, codes, aux)


def no_aux(count: int) -> npt.NDArray[np.float32]:
    """The ``aux`` of a family that has none: float32 (count, 0)."""
    return np.zeros((count, 0), np.float32)


def encode_blocks(stored: Rows, codes: npt.NDArray[Any], encode: Callable[[Rows, npt.NDArray[Any]], None],
                  run: Run) -> None:
    """Run ``encode(stored[lo:hi], codes[lo:hi])`` over blocks of rows, so that float copies stay small."""

    def block(lo: int, hi: int) -> Callable[[], None]:
        return lambda: encode(stored[lo:hi], codes[lo:hi])

    run([block(lo, hi) for lo, hi in blocks(len(stored), _BLOCK_ROWS)])


def scalar(state: Mapping[str, npt.NDArray[Any]], name: str) -> int:
    """The integer stored under ``name``."""
    return int(state[name][0])


def put_floats(codes: npt.NDArray[Any], floats: npt.NDArray[np.float32]) -> None:
    """Write ``floats`` (n, f) into the last ``4 f`` bytes of the rows of ``codes``."""
    columns = codes.view(np.uint8)[:, -4 * floats.shape[1]:]
    columns[...] = np.ascontiguousarray(floats).view(np.uint8)
