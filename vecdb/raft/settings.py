"""Times and bounds of a replica, all injected."""

from dataclasses import dataclass

from vecdb.core.errors import InvalidArgument
from vecdb.raft.messages import MAX_COMMAND_BYTES, MAX_ENTRIES


@dataclass(frozen=True, slots=True)
class RaftSettings:
    """Seconds and bytes.  An election begins after ``election_s_min`` to ``election_s_max`` without a leader."""

    heartbeat_s: float = 0.1
    election_s_min: float = 1.0
    election_s_max: float = 2.0
    batch_bytes: int = 4 << 20
    """Commands of one message."""
    batch_entries: int = 4_096
    window_bytes: int = 16 << 20
    """Sent to one follower and not acknowledged; further entries wait."""
    window_messages: int = 64
    uncommitted_bytes: int = 64 << 20
    """Above this a leader refuses proposals with ``Overloaded`` (but always takes one)."""
    command_bytes: int = MAX_COMMAND_BYTES - 1
    apply_bytes: int = 8 << 20
    """Commands handed to the state machine at once."""
    log_bytes: int = 256 << 20
    """A log above this is truncated, whoever still lacks it: he gets a snapshot."""
    keep_entries: int = 1_024
    """Left in the log below a checkpoint, so that a follower that was away for a moment needs no snapshot."""
    checkpoint_bytes: int = 64 << 20
    """Log written since the last checkpoint that makes the next one due."""
    chunk_bytes: int = 1 << 20
    fetches: int = 4
    """Chunks of a snapshot asked for at once: the bound on its share of the wire and of memory."""
    snapshot_bytes_s: int = 100 << 20
    """What a replica asks for of a snapshot in a second: the group serves meanwhile."""
    fetch_timeout_s: float = 2.0
    snapshot_idle_s: float = 60.0
    """A snapshot that nobody fetches from or installs is let go of, and with it the log that follows it."""

    @property
    def again_s(self) -> tuple[float, float]:
        """At least and at most: from an election that cannot be won any more, or from word that the leader's process is
        gone, to the next.
        """
        return self.election_s_min / 20, self.election_s_min / 2

    def __post_init__(self) -> None:
        if not 0 < 3 * self.heartbeat_s <= self.election_s_min < self.election_s_max:
            raise InvalidArgument("election_s_min", "at least three heartbeats, and less than election_s_max",
                                  got=self.election_s_min, limit=(3 * self.heartbeat_s, self.election_s_max))
        if not 1 <= self.batch_entries <= MAX_ENTRIES or not 1 <= self.command_bytes < MAX_COMMAND_BYTES:
            raise InvalidArgument("batch_entries", "out of range", got=self.batch_entries, limit=MAX_ENTRIES)
