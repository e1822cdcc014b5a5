"""The manifest: which segments a shard has, in rid order; the last one grows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import orjson

from vecdb.core.errors import DataCorrupted, FormatMismatch
from vecdb.segment.growing import GrowingView

if TYPE_CHECKING:
    from vecdb.shard.view import SegmentView

FORMAT = 1
"""Version of the rows' and files' layout; a directory of a later one is refused."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One segment: rids ``[first_rid, stop_rid)`` belong to it; a growing one's end is the shard's next rid."""

    segment_id: int
    sealed: bool
    first_rid: int
    stop_rid: int


@dataclass(frozen=True, slots=True)
class Manifest:
    entries: tuple[Entry, ...]
    next_segment: int

    @classmethod
    def of(cls, views: "Sequence[SegmentView]", next_segment: int) -> Self:
        entries = []
        for view in views:
            start, stop = view.rid_range
            if isinstance(view, GrowingView) and not view.segment.frozen:
                stop = start  # where it ends is the state row's to say
            entries.append(Entry(view.segment.segment_id, not isinstance(view, GrowingView), start, stop))
        return cls(tuple(entries), next_segment)

    def to_bytes(self) -> bytes:
        return orjson.dumps({"format": FORMAT, "next_segment": self.next_segment,
                             "segments": [[e.segment_id, e.sealed, e.first_rid, e.stop_rid] for e in self.entries]})

    @classmethod
    def from_bytes(cls, value: bytes) -> Self:
        try:
            parts = orjson.loads(value)
            if parts["format"] != FORMAT:
                raise FormatMismatch(f"the shard has format {parts['format']}, this version reads {FORMAT}",
                                     got=parts["format"], limit=FORMAT)
            return cls(tuple(Entry(*entry) for entry in parts["segments"]), parts["next_segment"])
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise DataCorrupted("the shard's manifest cannot be understood", path="row m") from error
