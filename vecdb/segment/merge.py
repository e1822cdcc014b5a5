"""Joining answers: the nearest k of several, ties broken by where they came from, without a loop per query."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vecdb.ann.found import Found


def top_k(parts: Sequence[Found], k: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32],
                                                  npt.NDArray[np.float32]]:
    """Return ``(part, ordinal, distance)`` arrays (nq, <=k), nearest first; -1, -1 and +inf where there are fewer."""
    if len(parts) == 1:  # most queries: nothing to join
        ordinals = parts[0].ordinals[:, :k]
        return np.where(ordinals < 0, np.int32(-1), np.int32(0)), ordinals, parts[0].distances[:, :k]
    source = np.concatenate([np.full(part.ordinals.shape, place, np.int32) for place, part in enumerate(parts)], axis=1)
    ordinals = np.concatenate([part.ordinals for part in parts], axis=1)
    distances = np.concatenate([part.distances for part in parts], axis=1)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    ordinals = np.take_along_axis(ordinals, order, axis=1)
    source = np.where(ordinals < 0, np.int32(-1), np.take_along_axis(source, order, axis=1))
    return source, ordinals, np.take_along_axis(distances, order, axis=1)


def join(first: Found, second: Found, k: int) -> Found:
    """The nearest ``k`` of two answers over disjoint ordinals of one segment; shape (nq, k), padded."""
    ordinals = np.concatenate([first.ordinals, second.ordinals], axis=1)
    distances = np.concatenate([first.distances, second.distances], axis=1)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    ordinals, distances = np.take_along_axis(ordinals, order, axis=1), np.take_along_axis(distances, order, axis=1)
    short = k - ordinals.shape[1]
    if short > 0:
        ordinals = np.pad(ordinals, ((0, 0), (0, short)), constant_values=-1)
        distances = np.pad(distances, ((0, 0), (0, short)), constant_values=np.inf)
    return Found(ordinals, distances, first.hops + second.hops, first.comparisons + second.comparisons,
                 first.stopped or second.stopped)
