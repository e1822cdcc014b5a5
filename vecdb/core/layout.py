"""How a cluster is to hold a collection: what ``create_collection`` takes beside the schema."""

from dataclasses import dataclass, fields
from typing import Any, Final, Self

from vecdb.core.cluster import MAX_COLLECTION_SHARDS
from vecdb.core.errors import InvalidArgument, LimitExceeded, Unsupported
from vecdb.core.filters.paths import check_path
from vecdb.core.limits import MAX_WORD

MAX_REPLICATION_FACTOR: Final = 7
"""Most replicas of a shard: more only cost latency."""
MAX_EXPECTED_RECORDS: Final = 1 << 50


@dataclass(frozen=True, slots=True)
class Layout:
    """None: the cluster decides.

    ``shards``: in how many parts; ``replication_factor``: on how many nodes each; ``shard_key``: a metadata field
    (a dotted path) by whose value records are placed, all of one value on one shard; ``expected_records``: how many
    there will be, by which shards are chosen where ``shards`` does not say.
    """

    shards: int | None = None
    replication_factor: int | None = None
    shard_key: str | None = None
    expected_records: int | None = None

    def __post_init__(self) -> None:
        _check("shards", self.shards, 1, MAX_COLLECTION_SHARDS)
        _check("replication_factor", self.replication_factor, 1, MAX_REPLICATION_FACTOR)
        _check("expected_records", self.expected_records, 0, MAX_EXPECTED_RECORDS)
        if self.shard_key is None:
            return
        if not isinstance(self.shard_key, str) or not self.shard_key:
            raise InvalidArgument("shard_key", "must be the path of a metadata field",
                                  got=type(self.shard_key).__name__, limit="a non-empty str")
        if len(self.shard_key) > MAX_WORD:
            raise LimitExceeded("shard_key", f"a path of {len(self.shard_key)} characters, more than {MAX_WORD}",
                                got=len(self.shard_key), limit=MAX_WORD)
        try:
            object.__setattr__(self, "shard_key", check_path(self.shard_key))
        except InvalidArgument as error:
            raise InvalidArgument("shard_key", f"is no path: {error.message.removeprefix('filter: ')}",
                                  got=self.shard_key, limit="keys joined by dots") from None

    @property
    def given(self) -> dict[str, Any]:
        """What was said."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in found.items() if value is not None}

    def alone(self, what: str) -> Self:
        """Raise ``Unsupported`` for what a database without a cluster cannot do; ``what`` it is, for the error."""
        if self.shards not in (None, 1):
            raise Unsupported(f"shards: {self.shards} are of clusters, and {what} holds a collection in one piece",
                              argument="shards", got=self.shards, limit=1)
        if self.replication_factor not in (None, 1):
            raise Unsupported(f"replication_factor: {self.replication_factor} replicas are of clusters, and {what} has "
                              "one copy", argument="replication_factor", got=self.replication_factor, limit=1)
        if self.shard_key is not None:
            raise Unsupported(f"shard_key: it places records on the shards of clusters, and {what} has none",
                              argument="shard_key", got=self.shard_key, limit="None")
        return self


def _check(argument: str, value: object, low: int, high: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgument(argument, f"must be an integer, not {type(value).__name__}", got=type(value).__name__,
                              limit=f"{low}..{high}")
    if not low <= value <= high:
        raise LimitExceeded(argument, f"{value} is outside {low}..{high}", got=value, limit=f"{low}..{high}")


ANYHOW: Final = Layout()
"""The cluster decides everything."""
