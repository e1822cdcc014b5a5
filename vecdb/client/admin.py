"""A server beside its collections: what it is, its API keys, the shards of its cluster."""

from collections.abc import Sequence
from typing import Any, TypeVar

from vecdb.client.asking import Ask
from vecdb.client.deadlines import check_timeout
from vecdb.client.operating import Operating
from vecdb.client.options import check_flag, check_text
from vecdb.client.session import Session
from vecdb.client.steps import Steps
from vecdb.core.access import Grant, Key, NewKey
from vecdb.core.schema import check_name, check_shard
from vecdb.core.shard_map import ShardMap
from vecdb.core.shards import ShardInfo, ShardVerification

T = TypeVar("T")


def ask(method: str, *args: Any) -> Steps[Any]:
    """One thing asked of the server."""
    return (yield Ask(method, *args))


def transfer(collection: str, to: str | None) -> Steps[None]:
    """Hand leadership over; an empty name is the control group's."""
    checked = "" if collection == "" else check_shard(collection)
    yield Ask("transfer_leader", checked, None if to is None else check_text("to", to))


class Admin:
    """``Database.admin``: needs the role admin; a directory has none of this and says Unsupported.

    >>> made = db.admin.create_key("app", [vecdb.Grant(vecdb.Role.WRITE, ["docs"])])  # doctest: +SKIP
    >>> made.secret  # doctest: +SKIP
    'vdb_…'
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def cluster(self) -> Operating:
        """The cluster: its nodes, and the jobs that change who holds what."""
        return Operating(self._session)

    def server(self, *, timeout: float | None = None) -> dict[str, Any]:
        """``version api node_id uptime_s`` and what else the server says of itself."""
        found: dict[str, Any] = self._session.run(ask("server"), check_timeout(timeout))
        return found

    def shards(self, collection: str | None = None, *, timeout: float | None = None) -> list[ShardInfo]:
        """The shard of a collection, or of each and the control group: who leads it, and how far its replicas are.

        A server without a cluster has one replica of each.
        """
        name = None if collection is None else check_name(collection)
        found: list[ShardInfo] = self._session.run(ask("shards", name), check_timeout(timeout))
        return found

    def shard_map(self, collection: str, *, timeout: float | None = None) -> ShardMap:
        """Which hashes each shard of a collection has, which nodes hold it, and the epoch of that.

        Unsupported where there is no cluster.
        """
        found: ShardMap = self._session.run(ask("shard_map", check_name(collection)), check_timeout(timeout))
        return found

    def verify_shard(self, collection: str, *, deep: bool = False, timeout: float | None = None) -> ShardVerification:
        """Compare what all replicas hold, at one place of the log; ``deep``: each reads its records again, too.

        Of several shards one is named: ``docs@7``, with its number.
        """
        steps = ask("verify_shard", check_shard(collection), check_flag("deep", deep))
        found: ShardVerification = self._session.run(steps, check_timeout(timeout))
        return found

    def transfer_leader(self, collection: str, to: str | None = None, *, timeout: float | None = None) -> None:
        """Hand the leadership of a shard to ``to``, a node or a replica by its name (None: whichever is furthest).

        Somebody leads when this returns, as a rule ``to`` (:meth:`shards` says who).  An empty ``collection`` is the
        control group.  Unavailable if it did not work out in time.
        """
        self._session.run(transfer(collection, to), check_timeout(timeout))

    def create_key(self, name: str, grants: Sequence[Grant], ttl_s: float = 0.0, *,
                   timeout: float | None = None) -> NewKey:
        """Make an API key; the secret is told this once.  ``ttl_s``: seconds it is good for, 0 for ever."""
        made: NewKey = self._session.run(ask("create_key", name, grants, ttl_s), check_timeout(timeout))
        return made

    def list_keys(self, *, timeout: float | None = None) -> list[Key]:
        """Every key, the revoked and the expired too."""
        found: list[Key] = self._session.run(ask("list_keys"), check_timeout(timeout))
        return found

    def rotate_key(self, id: str, overlap_s: float = 0.0, *, timeout: float | None = None) -> NewKey:
        """A new secret for a key; the old one is good for ``overlap_s`` more seconds."""
        made: NewKey = self._session.run(ask("rotate_key", id, overlap_s), check_timeout(timeout))
        return made

    def revoke_key(self, id: str, *, timeout: float | None = None) -> None:
        """End a key; raises KeyNotFound."""
        self._session.run(ask("revoke_key", id), check_timeout(timeout))
