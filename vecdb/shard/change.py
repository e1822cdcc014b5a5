"""What one command does to a shard: rows to write, and what waits to be shown once they are."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vecdb.core.errors import VecdbError
from vecdb.core.ids import RecordId
from vecdb.core.records import Command, WriteResult
from vecdb.shard import rows
from vecdb.shard.imports import Earlier, ImportChange, Remembered
from vecdb.shard.marks import MarkResult
from vecdb.shard.mutations import Mutations
from vecdb.shard.rows import State
from vecdb.shard.seal import SealState
from vecdb.shard.tokens import TokenChange


class Reads(Protocol):
    """The rows as of the last committed batch."""

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]: ...


@dataclass(slots=True)
class Staged:
    """Rows waiting in the growing segment, and rids that die, until ``commit``."""

    ids: list[RecordId] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    dead: list[int] = field(default_factory=list)
    token: TokenChange | None = None
    write: Remembered | None = None
    """What it did under a key, for who makes a copy elsewhere."""
    part: tuple[Command, ...] | None = None
    """What of the command was carried out where that is not all of it, in other words."""
    seal: SealState | None = None
    imports: ImportChange | None = None


@dataclass(frozen=True, slots=True)
class Applied:
    """What one command does: ``error`` or ``result``, and the batch to write before ``commit``."""

    result: WriteResult
    error: VecdbError | None
    mutations: Mutations
    state: State
    staged: Staged
    manifest: bytes | None = None
    """The manifest as it stands in the rows after this batch."""
    mark: MarkResult | None = None

    @property
    def changes(self) -> bool:
        """Whether records came or went, or an idempotency key is remembered."""
        staged = self.staged
        return bool(staged.ids or staged.dead or staged.token)


@dataclass(slots=True)
class Change:
    """The bookkeeping of one ``apply``."""

    state: State
    mutations: Mutations = field(default_factory=Mutations)
    staged: Staged = field(default_factory=Staged)
    added: list[bytes] = field(default_factory=list)
    buried: list[bytes] = field(default_factory=list)
    """Digests of versions that come and go."""
    earlier: Earlier | None = None
    """What of the command was carried out before its records came here."""

    def bury(self, rid: int, record: bytes) -> None:
        """The version ``rid``, whose row is ``record``, dies."""
        self.mutations.deletes.append(rows.record_row(rid))
        self.mutations.puts.append((rows.dead_row(rid), b""))
        self.staged.dead.append(rid)
        self.buried.append(rows.record_digest(record))
