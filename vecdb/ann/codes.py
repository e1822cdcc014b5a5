"""Codes: what a search walks over, exact rows or a quantizer's codes, behind one small protocol.

Arrays reach kernels as *read-only* views, whatever they are made of: Numba types a writable, a read-only and a mapped
array differently, and each type would be another compilation while somebody waits for an answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from vecdb.ann.space import Space
from vecdb.core.schema import Metric, VectorType


def frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A read-only C-contiguous view of ``array`` (a copy only if it is neither contiguous nor aligned)."""
    view = np.require(array, requirements=("C", "A")).view()
    view.flags.writeable = False
    return view


def address(array: npt.NDArray[Any]) -> int:
    """Where the array's items begin; valid as long as the array lives."""
    return int(array.ctypes.data)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Queries as a family's scorer reads them: ``codes`` (nq, w), ``aux`` float32 (nq, b), b may be 0; read-only."""

    codes: npt.NDArray[Any]
    aux: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        object.__setattr__(self, "codes", frozen(self.codes))
        object.__setattr__(self, "aux", frozen(self.aux))

    def __len__(self) -> int:
        return len(self.codes)


class Codes(Protocol):
    """Something to search over.

    ``family``: the registered scorer's name (:mod:`vecdb.kernels.registry`).  ``codes``: 2-D, one row a vector, of the
    family's dtype; ``aux``: float32 (n, a), a may be 0.  Both are read-only views (:func:`frozen`), borrowed.
    """

    @property
    def family(self) -> str: ...

    @property
    def codes(self) -> npt.NDArray[Any]: ...

    @property
    def aux(self) -> npt.NDArray[np.float32]: ...

    def prepare(self, queries: npt.NDArray[Any]) -> Prepared:
        """Make the scorer's form of ``queries`` (nq, row_items), in stored dtype (normalised for cosine)."""
        ...


@runtime_checkable
class QuickCodes(Codes, Protocol):
    """Codes that also prepare a single query into memory at hand, for calls that carry one query each."""

    @property
    def space(self) -> Space: ...

    def preparer(self, codes: npt.NDArray[Any], aux: npt.NDArray[np.float32]) -> Callable[[npt.NDArray[Any]], None]:
        """A function of one query (1, row_items) that writes what :meth:`prepare` returns into ``codes`` and ``aux``.

        The two are what ``prepare`` once returned for one query, copied; the function keeps them alive and is one
        thread's.
        """
        ...


@runtime_checkable
class InPlaceCodes(Codes, Protocol):
    """Codes that prepare a query where it stands, for calls that write it there themselves."""

    def former(self, form: npt.NDArray[np.int64], query: npt.NDArray[np.float32], codes: npt.NDArray[Any],
               aux: npt.NDArray[np.float32]) -> Callable[[], bool]:
        """As :meth:`QuickCodes.preparer`, of the query that stands in ``query`` float32 (dim,) when it is called.

        It brings the query to its stored form first, as ``form`` says (:mod:`vecdb.kernels.lone`), or says that it
        cannot.
        """
        ...


_TYPES = {VectorType.FLOAT32: "f32", VectorType.FLOAT16: "f16", VectorType.INT8: "i8", VectorType.UINT8: "u8",
          VectorType.BINARY: "bin"}


@dataclass(frozen=True, slots=True, eq=False)
class RowCodes:
    """The exact family: a space's own padded rows (n, row_width) with their ``aux`` from :meth:`Space.aux`."""

    space: Space
    codes: npt.NDArray[Any]
    aux: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        rows = self.codes.view(np.uint16) if self.codes.dtype == np.float16 else self.codes
        object.__setattr__(self, "codes", frozen(rows))
        aux = self.aux.reshape(len(self.aux), 1) if len(self.aux) else np.zeros((len(rows), 0), np.float32)
        object.__setattr__(self, "aux", frozen(aux))

    @property
    def family(self) -> str:
        return row_family(self.space)

    def prepare(self, queries: npt.NDArray[Any]) -> Prepared:
        """Pad the queries; ``qaux`` holds the additive constant and, for integer cosine, the inverse norms."""
        space = self.space
        padded = np.zeros((len(queries), space.row_width), space.row_dtype)
        padded[:, :space.row_items] = queries
        columns = np.zeros((len(queries), 2), np.float32)
        if space.metric is Metric.COSINE:
            columns[:, 0] = 1.0
            if space.has_aux:
                columns[:, 1] = space.aux(padded)
        return Prepared(padded.view(np.uint16) if padded.dtype == np.float16 else padded, columns)

    def preparer(self, codes: npt.NDArray[Any], aux: npt.NDArray[np.float32]) -> Callable[[npt.NDArray[Any]], None]:
        space, has_aux = self.space, self.space.has_aux
        items = (codes.view(np.float16) if space.row_dtype == np.float16 else codes)[:, :space.row_items]

        def prepare(query: npt.NDArray[Any]) -> None:
            items[:] = query
            if has_aux:
                aux[:, 1] = space.aux(query)

        return prepare


def row_family(space: Space) -> str:
    """The exact family's name: float cosine shares the inner-product kernels of dot (rows are normalised)."""
    kind = _TYPES[space.vector_type]
    if space.metric is Metric.HAMMING:
        return f"{kind}.hamming"
    if space.metric is Metric.L2:
        return f"{kind}.l2"
    return f"{kind}.cosine" if space.has_aux else f"{kind}.dot"
