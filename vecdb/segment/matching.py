"""Which ordinals of a segment's view a filter matches."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from vecdb.core.filters import predicate
from vecdb.core.filters.tree import Node
from vecdb.metadata.bits import to_words
from vecdb.segment.bits import Bits, head, members

if TYPE_CHECKING:
    from vecdb.segment.growing import GrowingView
    from vecdb.segment.sealed import SealedView

ReadMetadata = Callable[[npt.NDArray[np.int64]], list[dict[str, Any] | None]]
"""Metadata by rid, None for versions that are gone."""

_RESIDUAL_CHUNK = 4_096


def allowed_bits(view: "GrowingView | SealedView", where: Node, read_metadata: ReadMetadata) -> Bits:
    """Live ordinals below the view's count that match ``where``, as a bitset of their own."""
    found = view.segment.metadata.rows(where, view.count)
    live = head(view.live, view.count)
    words = to_words(found.bitmap, view.count)
    words &= live
    if found.residual is not None:
        sure = to_words(found.sure, view.count) & live
        words = _checked(view, words, sure, found.residual, read_metadata)
    return words


def matching_ordinals(view: "GrowingView | SealedView", where: Node | None,
                      read_metadata: ReadMetadata) -> npt.NDArray[np.int32]:
    """The same as ascending ordinals; ``None`` matches every live record."""
    words = head(view.live, view.count) if where is None else allowed_bits(view, where, read_metadata)
    return members(words, view.count).astype(np.int32)


def _checked(view: "GrowingView | SealedView", words: Bits, sure: Bits, residual: Node,
             read_metadata: ReadMetadata) -> Bits:
    """Keep those candidates that are sure or whose records match: for paths no index holds, records are read."""
    candidates = members(words & ~sure, view.count)
    keep: list[int] = []
    matches = predicate(residual)
    for start in range(0, len(candidates), _RESIDUAL_CHUNK):
        chunk = candidates[start : start + _RESIDUAL_CHUNK]
        rids = view.rids(chunk.astype(np.int32))
        keep += [ordinal for ordinal, metadata in zip(chunk.tolist(), read_metadata(rids), strict=True)
                 if metadata is not None and matches(metadata)]
    return sure | to_words(BitMap(keep), view.count)
