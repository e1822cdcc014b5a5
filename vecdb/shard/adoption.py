"""Adopting: at one place of its log a shard that was never written to becomes what files elsewhere say.

Millions of records with their index can be built apart (:mod:`vecdb.bulk`).  Through the log they would have to go one
by one, and be indexed by every replica.  So the log carries one command, **ADOPT**, which names the files by the
SHA-256 of their manifest, and says how many records they hold and their digest.  A replica that applies it puts the
files in the place of its state, as it does with a snapshot of its group (:mod:`vecdb.services.adopting`); what is state
at that place of the log is then the same on all replicas, since the content is.

A replica that cannot get the files when it comes to the command stops there, as with a disk that refuses, and tries
again; it never goes on without them.  Who joins later, or lost its state, could be in that position long after the
files are gone: so entries up to an adoption are dropped from the log at once, and such a replica gets a snapshot
(:class:`~vecdb.ports.replicator.Based`).

Done again it does nothing: a shard that holds what the command names says that it does.  Any other shard that holds, or
ever held, records refuses.
"""

from dataclasses import dataclass, replace
from typing import Protocol

from vecdb.core.errors import InvalidArgument, VecdbError
from vecdb.shard.change import Applied
from vecdb.shard.rows import State


@dataclass(frozen=True, slots=True)
class Adopt:
    """The command.  ``url``: a place of snapshots; ``sha256``: there, of the shard's manifest; hashes ``lo`` to
    ``last`` are the shard's.  ``digest``: of its records, in hex.
    """

    url: str
    sha256: str
    lo: int
    last: int
    records: int
    digest: str


class Refusing(Protocol):
    """:class:`vecdb.shard.machine.ShardMachine`."""

    @property
    def state(self) -> State: ...

    def refuse(self, log_index: int, term: int, error: VecdbError) -> Applied: ...


def is_untouched(state: State) -> bool:
    """Whether a shard was never written to."""
    return state.next_rid == 0


def adopted_before(machine: Refusing, log_index: int, term: int, command: Adopt) -> Applied:
    """Of a shard that is not untouched: nothing, if it is what the command names, else a refusal."""
    state = machine.state
    same = (state.records, f"{state.digest:032x}") == (command.records, command.digest)
    applied = machine.refuse(log_index, term, InvalidArgument(
        "command", f"files are adopted by a shard that was never written to; this one has {state.records} records",
        got=state.records, limit=0))
    return replace(applied, error=None) if same and not is_untouched(state) else applied
