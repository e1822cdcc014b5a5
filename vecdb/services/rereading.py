"""Are the files of a shard's sealed segments still what was written?  What serves in memory does not tell.

Every file is read again **from its medium**, past the page cache where the file system can
(:class:`~vecdb.segment.files.MediumReader`), and held against its checksums, as an opening would.  Nobody waits for
that: no lock is held, and after each MiB the thread rests as long as that took.  A segment that a merge replaces
meanwhile, or a state that another takes the place of, is no damage.

What an opening makes anew by itself, the index, is made anew: a job of upkeep writes another file.  Of vectors and
records it is said, here and by whoever describes the collection.  A replica does **not** end for it, as it does when
it cannot be opened: rot that all replicas have would end all of them, while each still serves what it once loaded.
The scrub builds them anew one at a time, and only where most of the replicas are as they should be.
"""

import time
from typing import Final

from vecdb.core.calls import Call, check
from vecdb.core.errors import DataCorrupted, FormatMismatch
from vecdb.ports.clock import Clock
from vecdb.segment.files import ArrayFile, MediumReader
from vecdb.segment.sealed import INDEX, RECORDS, VECTORS, SealedSegment, SealedView
from vecdb.services.shard import ShardService

REST_S: Final = 0.1
"""The longest rest at a time: a medium that is slow needs no longer ones."""


class _Pace:
    """Called before each read: raises what ends the call, and rests."""

    def __init__(self, clock: Clock, call: Call | None) -> None:
        self._clock, self._call = clock, call
        self._last: float | None = None

    def __call__(self) -> None:
        check(self._call)
        if self._last is not None and (spent := self._clock.monotonic() - self._last) > 0:
            time.sleep(min(spent, REST_S))
        self._last = self._clock.monotonic()


def reread(shard: ShardService, clock: Clock, call: Call | None = None, *, lone: bool = True) -> list[DataCorrupted]:
    """What is damaged of files that cannot be made anew; minutes for many GB.

    ``lone``: nobody has another copy, so records whose vectors are read from the damaged places are lost: they are
    named from now on, and left out of answers.  Raises ``DatabaseClosed`` where the state was replaced meanwhile,
    ``StorageError`` where files cannot be read for reasons that say nothing of what is in them.
    """
    pace = _Pace(clock, call)
    found: list[DataCorrupted] = []
    for view in shard.view.segments:
        if isinstance(view, SealedView):
            found += _segment(shard, view.segment, pace, lone)
    return found


def _segment(shard: ShardService, segment: SealedSegment, pace: _Pace, lone: bool) -> list[DataCorrupted]:
    found = []
    for name in (VECTORS, RECORDS, INDEX):
        if name == INDEX and segment.damage.rebuild_index:
            continue
        error = _read(segment, name, pace, lone)
        if error is None:
            segment.damage.since.pop(name, None)
            continue
        shard.check_open()
        if not any(one.segment is segment for one in shard.view.segments):
            return []
        if name == INDEX:
            segment.damage.tell_of_index(f"{error.message}; the index is rebuilt from the vectors")
            segment.damage.rebuild_index = True
            shard.on_change()
            continue
        segment.damage.since[name] = f"{error.message}. The file was whole when it was opened; what was loaded of " \
                                     "it then is served until the next opening"
        found.append(error)
    return found


def _read(segment: SealedSegment, name: str, pace: _Pace, lone: bool) -> DataCorrupted | None:
    """What is damaged of a file."""
    path = segment.directory / name
    try:
        with ArrayFile.open(path, verify=False, read=MediumReader(pace)) as file:
            try:
                file.check()
            except DataCorrupted as error:
                if name != VECTORS:
                    return error
                lost = file.rows_in("rows", error.fields["ranges"])
                if lone and not segment.rows.flags.writeable:
                    segment.lose(lost)
                return DataCorrupted(f"{error.message}: {len(lost)} vectors lie there (checksums are of a MiB each)",
                                     path=str(path), region="payload")
    except DataCorrupted as error:
        return error
    except FormatMismatch as error:
        return DataCorrupted(error.message, path=str(path), region="header")
    return None
