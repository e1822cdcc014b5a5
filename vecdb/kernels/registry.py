"""Which kernels serve which codes: one scorer registered per family, entries made from it on first use.

A *family* names a way rows are stored and compared ("f32.l2", "sq8.dot", "pq", ...).  It gives one inlined scorer

    score(codes, aux, qcodes, qaux, q, i) -> float32

the raw distance (ascending) between query ``q`` of (``qcodes``, ``qaux``) and row ``i`` of (``codes``, ``aux``).  All
four are 2-D C-contiguous *read-only* arrays of the dtypes registered; ``aux`` and ``qaux`` are float32 and may have
no columns.  ``q`` and ``i`` are non-negative int64.  A family that graphs are built on (exact rows) also gives

    pair(codes, aux, i, j) -> float32

between two rows, up to a constant.  Everything else (beam, scan, rerank, link) is generic over these two: the
factories in :mod:`vecdb.kernels.beam`, :mod:`~vecdb.kernels.scan` and :mod:`~vecdb.kernels.link` close over them.

To add a family: write the scorer with ``@inline`` (:mod:`vecdb.kernels._jit`), call :func:`register` at the import of
its module, and list the module in ``_HOMES`` below, so that it is imported when the family is first asked for.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Family:
    """A registered family: its scorer(s) and the dtypes of code rows and prepared queries."""

    name: str
    score: Any
    pair: Any | None
    code_dtype: np.dtype[Any]
    query_dtype: np.dtype[Any]


_FAMILIES: dict[str, Family] = {}
_MADE: dict[tuple[str, str], Any] = {}
_HOMES = {
    "f32": "vecdb.kernels.distance", "f16": "vecdb.kernels.distance", "i8": "vecdb.kernels.distance",
    "u8": "vecdb.kernels.distance", "bin": "vecdb.kernels.distance", "sq8": "vecdb.kernels.sq8",
    "sq4": "vecdb.kernels.sq4", "pq": "vecdb.kernels.pq",
    "rabitq": "vecdb.kernels.rabitq",
}
"""The module that registers each family, by the part of its name before the dot."""


def register(name: str, score: Any, *, code_dtype: npt.DTypeLike, query_dtype: npt.DTypeLike,
             pair: Any | None = None) -> Family:
    """Make a family known; a second registration of a name replaces nothing and raises ``ValueError``."""
    if name in _FAMILIES:
        raise ValueError(f"family {name!r} is registered already")
    _FAMILIES[name] = Family(name, score, pair, np.dtype(code_dtype), np.dtype(query_dtype))
    return _FAMILIES[name]


def family(name: str) -> Family:
    """The family of that name, its home imported if need be; ``KeyError`` when there is none."""
    if name not in _FAMILIES:
        importlib.import_module(_HOMES[name.partition(".")[0]])
    return _FAMILIES[name]


def made(role: str, name: str, factory: Callable[[Family], Any]) -> Any:
    """The entry that ``factory`` makes for family ``name``, made once; ``role`` tells entries of a family apart."""
    key = (role, name)
    entry = _MADE.get(key)
    if entry is None:
        # two threads may both make it: the loser's copy is dropped before anything was compiled for it
        entry = _MADE.setdefault(key, factory(family(name)))
    return entry
