"""Helpers whose float sums LLVM may reorder: the one place where the quantizers' kernels take fast-math.

A sum over looked-up or strided floats is no dot product of two rows, so the intrinsics of exact distances do not fit
it; with ``reassoc`` LLVM makes gathers and vector sums of the plain loop (PQ's: 5 ns for 25 subspaces, 11 without).
NaN and infinity keep their meaning.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

from vecdb.kernels._jit import REASSOCIATE

F = TypeVar("F", bound=Callable[..., Any])


def loose(function: F) -> F:
    """Compile ``function`` into each of its callers, its float operations free to be reordered and fused."""
    compile_with = njit(forceinline=True, nogil=True, error_model="numpy", boundscheck=False, fastmath=set(REASSOCIATE))
    return cast(F, compile_with(function))
