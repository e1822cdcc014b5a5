"""An immutable moment of a shard: its segments' views in rid order and the state they belong to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vecdb.segment.growing import GrowingView
from vecdb.segment.sealed import SealedView
from vecdb.shard.rows import State

SegmentView = GrowingView | SealedView


@dataclass(frozen=True, slots=True, eq=False)
class ShardView:
    """What one query sees, whatever is written meanwhile."""

    segments: tuple[SegmentView, ...]
    state: State

    def locate(self, rids: npt.NDArray[np.int64]) -> Iterator[tuple[int, SegmentView, npt.NDArray[np.int64],
                                                                    npt.NDArray[np.int64]]]:
        """Yield ``(segment's place, view, positions into rids, ordinals)`` for each segment holding some."""
        for place, view in enumerate(self.segments):
            start, stop = view.rid_range
            positions = np.flatnonzero((rids >= start) & (rids < stop))
            if len(positions):
                ordinals = view.ordinals(rids[positions])
                there = ordinals >= 0
                if there.any():
                    yield place, view, positions[there], ordinals[there]

    def vectors(self, rids: npt.NDArray[np.int64], row_items: int, dtype: np.dtype[Any]
                ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Stored vectors (n, row_items) of rids and which of them were found and readable."""
        out = np.zeros((len(rids), row_items), dtype)
        found = np.zeros(len(rids), np.bool_)
        for _, view, positions, ordinals in self.locate(rids):
            out[positions] = view.vectors(ordinals)
            found[positions] = ~view.damaged(ordinals)
        return out, found


def rid_array(rids: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.array(rids, np.int64)
