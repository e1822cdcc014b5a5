"""What a command wants written: rows of the shard's ordered key space, as plain columns."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Mutations:
    """One atomic batch: range deletions first, then single deletions, then puts.

    Applied in that order, so a batch may empty a range and put new rows into it.
    """

    ranges: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Half-open ``[start, stop)``."""
    deletes: list[bytes] = field(default_factory=list)
    puts: list[tuple[bytes, bytes]] = field(default_factory=list)
