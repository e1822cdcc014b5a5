"""A server beside its collections: what it is, and its API keys."""

from collections.abc import Sequence
from typing import Any, TypeVar

from vecdb.client.asking import Ask
from vecdb.client.deadlines import check_timeout
from vecdb.client.session import Session
from vecdb.client.steps import Steps
from vecdb.core.access import Grant, Key, NewKey

T = TypeVar("T")


def ask(method: str, *args: Any) -> Steps[Any]:
    """One thing asked of the server."""
    return (yield Ask(method, *args))


class Admin:
    """``Database.admin``: needs the role admin; a directory has none of this and says Unsupported.

    >>> made = db.admin.create_key("app", [vecdb.Grant(vecdb.Role.WRITE, ["docs"])])  # doctest: +SKIP
    >>> made.secret  # doctest: +SKIP
    'vdb_…'
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def server(self, *, timeout: float | None = None) -> dict[str, Any]:
        """``version api node_id uptime_s`` and what else the server says of itself."""
        found: dict[str, Any] = self._session.run(ask("server"), check_timeout(timeout))
        return found

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
