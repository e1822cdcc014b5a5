"""What clients did and saw, a line each, and whether one history explains it.

Every write carries a number of its own, so that a read says which writes it saw.  Keys of three kinds:

- **shared** ones: all clients upsert, update, delete and read them linearizably; each lives for a second or so of one
  round, so that Wing and Gong's search stays short.  The state of a key is the number of the upsert and the number of
  the last write of its metadata: an update leaves the vector, which must be the upsert's;
- **own** ones: one client writes growing numbers; its session reads (and those of who was given its token) must see at
  least what was acknowledged to it;
- **appended** ones: written once, some deleted once, looked for at the end on every replica.

A write without an answer, or with an error, may have happened or not, then or later.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vecdb.testing.linear import linearizable

UNKNOWN = math.inf
_SHIFT = 31


@dataclass(frozen=True, slots=True)
class Event:
    """``kind``: upsert, update, delete, read (shared keys), own, session, append, remove, eventual.

    ``start``, ``end``: on the machine's monotonic clock.  ``result``: of a read ``[upsert, metadata]`` or None where
    there was no record; of a write whether the record was there before.  ``floor``: what a session read must see.
    ``error``: why there is no result.
    """

    round: int
    client: str
    kind: str
    key: int
    value: int = 0
    start: float = 0.0
    end: float = UNKNOWN
    result: Any = None
    floor: int = 0
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error and self.end != UNKNOWN

    def line(self) -> str:
        return json.dumps({name: value for name, value in asdict(self).items() if value != UNKNOWN})


@dataclass(frozen=True, slots=True)
class _Step:
    """An operation on a shared key as the search wants it; states are ``upsert << 31 | metadata``, 0: no record."""

    kind: str
    start: float
    end: float
    value: int
    result: Any
    client: str

    @property
    def reads(self) -> bool:
        return self.kind == "read"

    def step(self, state: int) -> int | None:
        if self.reads:
            return state if self.result == state else None
        was = bool(state)
        if self.end != UNKNOWN and bool(self.result) != was:
            return None
        if self.kind == "upsert":
            return self.value << _SHIFT | self.value
        if self.kind == "delete":
            return 0
        return state >> _SHIFT << _SHIFT | self.value if was else 0


class Violated(AssertionError):
    """The cluster broke a promise."""


def load(path: Path, start: int = 0) -> tuple[int, list[Event]]:
    """The events of a file from a byte on, and the byte after them; a last line that is not whole does not count."""
    if not path.exists():
        return start, []
    with path.open("rb") as file:
        file.seek(start)
        text = file.read()
    end = text.rfind(b"\n") + 1
    return start + end, [Event(**json.loads(line)) for line in text[:end].splitlines()]


def _step(event: Event) -> _Step:
    if event.kind == "read":
        result = 0 if event.result is None else event.result[0] << _SHIFT | event.result[1]
    else:
        result = event.result
    return _Step(event.kind, event.start, event.end if event.ok else UNKNOWN, event.value, result, event.client)


def check_shared(events: Iterable[Event]) -> dict[str, int]:
    """Linearizability, key by key; returns how much was checked."""
    keys: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        if event.kind in ("upsert", "update", "delete", "read"):
            keys[event.key].append(event)
    for key, of_key in keys.items():
        steps = [_step(event) for event in of_key if event.ok or event.kind != "read"]
        if not linearizable(steps):
            lines = "\n".join("  " + event.line() for event in sorted(of_key, key=lambda one: one.start))
            raise Violated(f"key {key} is not linearizable:\n{lines}")
    return {"keys": len(keys), "operations": sum(map(len, keys.values()))}


def check_own(events: Sequence[Event]) -> dict[str, int]:
    """Session reads see at least what they must; no read sees what nobody wrote."""
    written: dict[int, set[int]] = defaultdict(set)
    unsure: dict[int, set[int]] = defaultdict(set)
    for event in events:
        if event.kind in ("own", "upsert", "update", "append"):
            written[event.key].add(event.value)
        if event.kind == "own" and not event.ok:
            unsure[event.key].add(event.value)
    sessions = 0
    for event in events:
        if event.kind not in ("session", "eventual", "read") or not event.ok:
            continue
        seen = {0} if event.result is None else set(event.result)
        if not seen <= written[event.key] | {0}:
            raise Violated(f"a read saw what nobody wrote: {event.line()}")
        if event.kind == "session":
            sessions += 1
            value = 0 if event.result is None else event.result[1]
            if value < event.floor and value not in unsure[event.key]:
                raise Violated(f"a session read is older than what the session knew of: {event.line()}")
    return {"session_reads": sessions}


@dataclass(slots=True)
class Appended:
    """What must be there, what must not, and what may be: by id, the value."""

    present: dict[int, int]
    absent: set[int]
    unsure: set[int]

    def check(self, found: dict[int, int], where: str) -> None:
        """``found``: all appended ids a replica has, with their values."""
        lost = [key for key in self.present if key not in found]
        if lost:
            raise Violated(f"{where}: {len(lost)} acknowledged records are lost, such as {sorted(lost)[:5]}")
        wrong = [key for key, value in self.present.items() if found[key] != value]
        if wrong:
            raise Violated(f"{where}: {len(wrong)} records are not what was written, such as {sorted(wrong)[:5]}")
        back = [key for key in found if key in self.absent]
        if back:
            raise Violated(f"{where}: {len(back)} deleted records are there, such as {sorted(back)[:5]}")
        strange = [key for key in found if key not in self.present and key not in self.unsure]
        if strange:
            raise Violated(f"{where}: {len(strange)} records nobody wrote, such as {sorted(strange)[:5]}")


def appended(events: Iterable[Event]) -> Appended:
    """By the clients' own order: each id is appended by one client, and later removed by it if at all."""
    told = Appended({}, set(), set())
    for event in events:
        if event.kind == "append":
            if event.ok:
                told.present[event.key] = event.value
            else:
                told.unsure.add(event.key)
        elif event.kind == "remove":
            told.present.pop(event.key, None)
            (told.absent if event.ok else told.unsure).add(event.key)
    return told


def gap_after(events: Iterable[Event], moment: float) -> float | None:
    """Seconds from ``moment`` to the first acknowledgement of a write that was begun after it."""
    kinds = ("upsert", "update", "delete", "own", "append", "remove")
    ends = [event.end for event in events if event.kind in kinds and event.ok and event.start >= moment]
    return min(ends) - moment if ends else None
