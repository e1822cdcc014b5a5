"""Which segments should be rewritten into one: a pure policy over the segments in rid order.

Sealing is rewriting frozen segments.  Merging is tiered: when ``merge_factor`` neighbours are of one tier
(sizes within that factor), they become one segment of the next, so a record is rewritten a logarithmic
number of times.  Neighbours with many dead
records are rewritten together.  Segments with damaged vectors are left
where they are, since rewriting would drop what a repair may still need.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vecdb.segment.growing import GrowingView
from vecdb.segment.sealed import SealedView
from vecdb.shard.view import SegmentView


@dataclass(frozen=True, slots=True)
class UpkeepPolicy:
    """``base``: records of tier 0 and below; the rest as in the engine's settings."""

    base: int
    merge_factor: int
    max_segment_records: int
    dead_fraction: float


CHURN = 2
"""With more than so many dead to one live record, giving back what is dead comes before sealing what is new."""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Neighbouring segments that should become one; ``kind`` is seal, merge or compact."""

    kind: str
    views: tuple[SegmentView, ...]

    @property
    def key(self) -> tuple[int, ...]:
        return tuple(view.segment.segment_id for view in self.views)


def next_rewrite(views: Sequence[SegmentView], policy: UpkeepPolicy) -> Rewrite | None:
    """The most useful rewrite now, None if the shard is in shape.  The last view is the growing one."""
    settled = views[:-1]
    frozen = _first_frozen(settled, policy)
    decayed = _longest_decayed(settled, policy)
    live = sum(view.live_count for view in settled)
    dead = sum(view.count for view in settled) - live
    if decayed and (not frozen or dead > max(CHURN * live, policy.base)):
        return Rewrite("compact", decayed)
    if frozen:
        return Rewrite("seal", frozen)
    return _tier_merge(settled, policy)


def _longest_decayed(views: Sequence[SegmentView], policy: UpkeepPolicy) -> tuple[SegmentView, ...]:
    """The longest run of sealed neighbours with many dead: rewritten together, they become few."""
    best: list[SegmentView] = []
    run: list[SegmentView] = []
    records = 0
    for view in views:
        decayed = (isinstance(view, SealedView) and not _damaged(view)
                   and view.count - view.live_count > policy.dead_fraction * view.count)
        if not decayed or records + view.live_count > policy.max_segment_records:
            run, records = [], 0
        if decayed:
            run.append(view)
            records += view.live_count
        if len(run) > len(best):
            best = list(run)
    return tuple(best)


def _first_frozen(views: Sequence[SegmentView], policy: UpkeepPolicy) -> tuple[SegmentView, ...]:
    """The first run of frozen neighbours, which become one segment as far as the size limit allows."""
    run: list[SegmentView] = []
    records = 0
    for view in views:
        if isinstance(view, GrowingView) and (not run or records + view.live_count <= policy.max_segment_records):
            run.append(view)
            records += view.live_count
        elif run:
            break
    return tuple(run)


def full_rewrite(views: Sequence[SegmentView], policy: UpkeepPolicy) -> list[Rewrite]:
    """What makes as few segments as the size limit allows, without dead records (``optimize``)."""
    out: list[Rewrite] = []
    group: list[SegmentView] = []
    records = 0
    for view in views[:-1]:
        fits = records + view.live_count <= policy.max_segment_records
        if group and (_damaged(view) or not fits):
            if _worth(group):
                out.append(Rewrite(_kind(group), tuple(group)))
            group, records = [], 0
        if not _damaged(view):
            group.append(view)
            records += view.live_count
    if group and _worth(group):
        out.append(Rewrite(_kind(group), tuple(group)))
    return out


def _kind(group: Sequence[SegmentView]) -> str:
    if len(group) > 1:
        return "merge"
    return "seal" if isinstance(group[0], GrowingView) else "compact"


def _worth(group: Sequence[SegmentView]) -> bool:
    if len(group) > 1:
        return True
    view = group[0]
    return isinstance(view, GrowingView) or view.live_count < view.count


def _tier_merge(views: Sequence[SegmentView], policy: UpkeepPolicy) -> Rewrite | None:
    run: list[SegmentView] = []
    tier = -1
    for view in views:
        mine = _tier(view.live_count, policy)
        if _damaged(view):
            run = []
            continue
        if mine != tier:
            run, tier = [], mine
        run.append(view)
        if len(run) == policy.merge_factor:
            if sum(one.live_count for one in run) <= policy.max_segment_records:
                return Rewrite("merge", tuple(run))
            run = run[1:]
    return None


def _tier(records: int, policy: UpkeepPolicy) -> int:
    if records <= policy.base:
        return 0
    return 1 + int(math.log(records / policy.base, policy.merge_factor) + 1e-9)


def _damaged(view: SegmentView) -> bool:
    return isinstance(view, SealedView) and len(view.lost()) > 0
