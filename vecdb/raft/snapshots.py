"""Snapshots by reference: a leader offers, the follower fetches file by file, in chunks, as it can take them.

The follower asks, so the flow is bounded by it (``fetches`` chunks at once), survives a change of leader if the files
are the same, and begins again where it was cut.  Whole files are checked by their checksum when they are installed;
frames carry their own.  What goes wrong ends the attempt; the leader's next heartbeat offers again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from vecdb.ports.replicator import Incoming, Position, Snapshot, StateMachine
from vecdb.raft.log import Intent
from vecdb.raft.messages import Chunk, Fetch, Offer
from vecdb.raft.settings import RaftSettings


@dataclass(slots=True)
class Outgoing:
    """A snapshot held for followers; released when nobody has fetched for a while."""

    number: int
    snapshot: Snapshot
    used: float
    readers: int = 0
    over: bool = False

    def end(self) -> None:
        """Release it, once nobody reads from it any more."""
        self.over = True
        if not self.readers:
            self.snapshot.release()

    def was_read(self) -> None:
        self.readers -= 1
        if self.over:
            self.end()

    def offer(self, term: int, intent: Intent) -> Offer:
        return Offer(term, 0, intent.index, intent.term, self.number, intent.configuration, tuple(self.snapshot.files))

    def chunk(self, term: int, fetch: Fetch) -> Chunk:
        """Read what was asked for; for a thread."""
        files = self.snapshot.files
        if fetch.snapshot != self.number or fetch.file >= len(files):
            return gone(term, fetch)
        length = max(0, min(fetch.length, files[fetch.file].bytes - fetch.offset))
        return Chunk(term, fetch.snapshot, fetch.file, fetch.offset, False,
                     self.snapshot.read(fetch.file, fetch.offset, length))


def gone(term: int, fetch: Fetch) -> Chunk:
    return Chunk(term, fetch.snapshot, fetch.file, fetch.offset, True, b"")


@dataclass(slots=True)
class _Asked:
    file: int
    offset: int
    length: int
    until: float
    data: bytes | None = None


@dataclass(slots=True)
class Receiving:
    """One attempt to take a snapshot.  ``step`` says what to ask for; ``take`` what to write."""

    sender: str
    offer: Offer
    incoming: Incoming
    settings: RaftSettings
    clock: Callable[[], float]
    _asked: list[_Asked] = field(default_factory=list)
    _file: int = 0
    _offset: int = -1
    _next: float = 0.0
    """When more may be asked for."""
    writing: bool = False
    installing: bool = False

    @classmethod
    def begin(cls, sender: str, offer: Offer, machine: StateMachine, settings: RaftSettings,
              clock: Callable[[], float]) -> "Receiving":
        incoming = machine.receive(Position(offer.index, offer.index_term), offer.files)
        return cls(sender, offer, incoming, settings, clock)

    @property
    def intent(self) -> Intent:
        return Intent(self.offer.index, self.offer.index_term, self.offer.configuration)

    @property
    def complete(self) -> bool:
        self._skip()
        return self._file == len(self.offer.files) and not self._asked and not self.writing

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes that have come or are asked for, and all."""
        sizes = [file.bytes for file in self.offer.files]
        return sum(sizes[:self._file]) + max(0, self._offset), sum(sizes)

    def _skip(self) -> None:
        files = self.offer.files
        while self._file < len(files):
            if self._offset < 0:
                self._offset = self.incoming.have(self._file)
            if self._offset < files[self._file].bytes:
                return
            self._file, self._offset = self._file + 1, -1

    def step(self) -> list[Fetch]:
        """What to ask for now: the next pieces, and again what has not come in time."""
        now = self.clock()
        fetches: list[Fetch] = []
        for asked in self._asked:
            if asked.data is None and now >= asked.until:
                asked.until = now + self.settings.fetch_timeout_s
                fetches.append(self._fetch(asked))
        while len(self._asked) < self.settings.fetches:
            self._skip()
            if self._file == len(self.offer.files) or now < self._next:
                break
            length = min(self.settings.chunk_bytes, self.offer.files[self._file].bytes - self._offset)
            asked = _Asked(self._file, self._offset, length, now + self.settings.fetch_timeout_s)
            self._offset += length
            # A burst of one tick is made up for afterwards, so the pace holds although time comes in steps.
            self._next = max(self._next, now - 0.1) + length / self.settings.snapshot_bytes_s
            self._asked.append(asked)
            fetches.append(self._fetch(asked))
        return fetches

    def _fetch(self, asked: _Asked) -> Fetch:
        return Fetch(self.offer.term, self.offer.snapshot, asked.file, asked.offset, asked.length)

    def take(self, chunk: Chunk) -> None:
        """Keep a piece that was asked for; anything else is dropped."""
        for asked in self._asked:
            if (asked.file, asked.offset, asked.length) == (chunk.file, chunk.offset, len(chunk.data)):
                asked.data = chunk.data

    def next_write(self) -> tuple[int, int, bytes] | None:
        """The next piece in order, if it has come and no other is being written."""
        if self.writing or not self._asked or self._asked[0].data is None:
            return None
        asked = self._asked.pop(0)
        assert asked.data is not None
        self.writing = True
        return asked.file, asked.offset, asked.data
