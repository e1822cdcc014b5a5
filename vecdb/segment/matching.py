"""Which ordinals of a segment's view a filter matches."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from vecdb.core.calls import Call, check
from vecdb.core.filters import predicate
from vecdb.core.filters.tree import Node
from vecdb.metadata.bits import to_words
from vecdb.segment.bits import Bits, has, head, members

if TYPE_CHECKING:
    from vecdb.segment.growing import GrowingView
    from vecdb.segment.sealed import SealedView

ReadMetadata = Callable[[npt.NDArray[np.int64]], list[dict[str, Any] | None]]
"""Metadata by rid, None for versions that are gone."""

_RESIDUAL_CHUNK = 1_024
"""Records read and asked at once, and between two looks at whether the call goes on: some milliseconds."""


class StaleView(Exception):  # control flow: the reader asks again on a newer view
    """A record of the view died since, and what had to be read of it is gone from the rows."""


def allowed_bits(view: "GrowingView | SealedView", where: Node, read_metadata: ReadMetadata,
                 call: Call | None = None) -> Bits:
    """Live ordinals below the view's count that match ``where``, a bitset of their own; raises what ends ``call``."""
    words, sure, residual = _candidates(view, where, call)
    if residual is None:
        return words
    unsure = members(words & ~sure, view.count)
    keep: list[int] = []
    for start in range(0, len(unsure), _RESIDUAL_CHUNK):
        check(call)
        chunk = unsure[start : start + _RESIDUAL_CHUNK]
        keep += chunk[_matching(view, chunk, residual, read_metadata)].tolist()
    return sure | to_words(BitMap(keep), view.count)


def matching_ordinals(view: "GrowingView | SealedView", where: Node | None,
                      read_metadata: ReadMetadata, call: Call | None = None) -> npt.NDArray[np.int32]:
    """The same as ascending ordinals; ``None`` matches every live record."""
    words = head(view.live, view.count) if where is None else allowed_bits(view, where, read_metadata, call)
    return members(words, view.count).astype(np.int32)


def matching_rids(view: "GrowingView | SealedView", where: Node | None, read_metadata: ReadMetadata, after: int,
                  limit: int, call: Call | None = None) -> list[int]:
    """The first ``limit`` matching rids from ``after`` on, ascending; reads no more records than it has to."""
    words, sure, residual = ((head(view.live, view.count), None, None) if where is None
                             else _candidates(view, where, call))
    ordinals = members(words, view.count)
    rids = view.rids(ordinals.astype(np.int32))
    order = np.argsort(rids, kind="stable")
    order = order[np.searchsorted(rids[order], after) :]
    if residual is None or sure is None:
        return [int(rid) for rid in rids[order[:limit]]]
    found: list[int] = []
    for start in range(0, len(order), _RESIDUAL_CHUNK):
        check(call)
        chunk = order[start : start + _RESIDUAL_CHUNK]
        kept = has(sure, ordinals[chunk])
        unsure = np.flatnonzero(~kept)
        kept[unsure] = _matching(view, ordinals[chunk[unsure]], residual, read_metadata)
        found += rids[chunk[kept]].tolist()
        if len(found) >= limit:
            break
    return found[:limit]


def _candidates(view: "GrowingView | SealedView", where: Node,
                call: Call | None) -> tuple[Bits, Bits, Node | None]:
    """Live ordinals that may match, those that surely do, and what to ask the records of the rest (None: nothing)."""
    found = view.segment.metadata.rows(where, view.count, call)
    check(call)
    live = head(view.live, view.count)
    words = to_words(found.bitmap, view.count)
    words &= live
    if found.residual is None:
        return words, words, None
    return words, to_words(found.sure, view.count) & live, found.residual


def _matching(view: "GrowingView | SealedView", ordinals: npt.NDArray[np.int64], residual: Node,
              read_metadata: ReadMetadata) -> npt.NDArray[np.bool_]:
    """Which records match, by reading them: for paths that no index holds."""
    matches = predicate(residual)
    out = np.zeros(len(ordinals), np.bool_)
    for place, metadata in enumerate(read_metadata(view.rids(ordinals.astype(np.int32)))):
        if metadata is None:
            raise StaleView
        out[place] = matches(metadata)
    return out
