"""What a collection says of itself: counts, segments, index state, bytes in memory and on disk, jobs, damage."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from vecdb.core.query import Description
from vecdb.core.schema import collection_of
from vecdb.segment.growing import GrowingView
from vecdb.services.shard import ShardService
from vecdb.shard.view import SegmentView

LOST_IDS_SHOWN = 1_000


def describe(shard: ShardService, jobs: list[dict[str, Any]]) -> Description:
    view = shard.view
    schema = shard.schema
    segments = [_segment(one) for one in view.segments]
    memory: dict[str, int] = {}
    for one in view.segments:
        for part, size in one.segment.memory_bytes().items():
            memory[part] = memory.get(part, 0) + size
    disk = _disk(shard.directory)
    details: dict[str, Any] = {
        "dim": schema.dim, "metric": schema.metric.value, "vector_type": schema.vector_type.value,
        "index": schema.to_json()["index"], "indexed_fields": schema.indexed_fields,
        "segments": segments, "memory_bytes": memory | {"total": sum(memory.values())},
        "disk_bytes": disk | {"total": sum(disk.values())}, "jobs": jobs,
        "log_index": view.state.applied, "digest": f"{view.state.digest:032x}",
    }
    damage = [damaged for one in view.segments if (damaged := _damage(one)) is not None]
    if damage:
        details["damage"] = damage
    return Description(collection_of(schema.name), view.state.records, details)


def _segment(view: SegmentView) -> dict[str, Any]:
    segment = view.segment
    out: dict[str, Any] = {"id": segment.segment_id, "records": view.live_count, "dead": view.count - view.live_count,
                           "memory_bytes": sum(segment.memory_bytes().values())}
    if isinstance(view, GrowingView):
        linked = view.segment.linked
        out["state"] = "frozen" if view.segment.frozen else "growing"
        out["index"] = {"kind": "hnsw" if linked else "flat", "linked": linked, "scanned": view.count - linked,
                        "reason": "the graph follows the records; what it does not hold yet is scanned"}
    else:
        out["state"] = "sealed"
        out["disk_bytes"] = view.segment.disk_bytes()
        out["index"] = view.segment.ann.describe()
    return out


def _damage(view: SegmentView) -> dict[str, Any] | None:
    if isinstance(view, GrowingView):
        return None
    messages = [*view.segment.damage.messages, *view.segment.damage.since.copy().values()]
    if not messages:
        return None
    lost = view.lost()
    return {"segment": view.segment.segment_id, "messages": messages,
            "lost_records": len(lost), "lost_ids": view.ids(lost[:LOST_IDS_SHOWN])}


def _disk(folder: Path) -> dict[str, int]:
    """Bytes below the folder by part; files may vanish while we look."""
    out: dict[str, int] = {}
    for part in ("rows", "segments"):
        total = 0
        for where, _, names in os.walk(folder / part):
            for name in names:
                with suppress(FileNotFoundError):
                    total += os.stat(os.path.join(where, name)).st_size
        out[part] = total
    return out
