"""A cluster for those who run it, in asyncio."""

from collections.abc import Mapping, Sequence
from typing import Any

from vecdb.client.async_session import AsyncSession
from vecdb.client.deadlines import check_timeout
from vecdb.client.operating import ask, begin
from vecdb.client.options import check_text
from vecdb.core.cluster import JobInfo, Plan
from vecdb.core.operations import ClusterInfo, JoinToken, NewJoinToken


class AsyncOperating:
    """:class:`~vecdb.client.operating.Operating`, awaited."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def _ask(self, timeout: float | None, method: str, *args: Any, **named: Any) -> Any:
        return await self._session.run(ask(method, *args, **named), check_timeout(timeout))

    async def info(self, *, timeout: float | None = None) -> ClusterInfo:
        """The cluster at a glance: its nodes, how many shards and jobs, its settings."""
        found: ClusterInfo = await self._ask(timeout, "cluster")
        return found

    async def jobs(self, *, ended: bool = False, timeout: float | None = None) -> list[JobInfo]:
        """By number; ``ended``: those that have ended, too."""
        found: list[JobInfo] = await self._ask(timeout, "cluster_jobs", ended=ended)
        return found

    async def job(self, id: int, *, timeout: float | None = None) -> JobInfo:
        """JobNotFound if there is none of this number."""
        found: list[JobInfo] = await self._ask(timeout, "cluster_jobs", id=id)
        return found[0]

    async def plan(self, kind: str, target: str = "", args: Mapping[str, Any] | None = None, *,
             timeout: float | None = None) -> Plan:
        """What a job would do now.  ``kind``: move, replication, drain, repair, rebalance, split, merge, ...

        InvalidArgument for what makes no sense, Unavailable for what cannot be done now.
        """
        found: Plan = await self._ask(timeout, "plan_job", check_text("kind", kind), target, dict(args or {}))
        return found

    async def begin(self, kind: str, target: str = "", args: Mapping[str, Any] | None = None, *,
              timeout: float | None = None) -> int:
        """Begin a job; its number.  Refused as :meth:`plan` refuses it."""
        started: int = await self._session.run(begin(kind, target, args or {}), check_timeout(timeout))
        return started

    async def cancel(self, id: int, *, timeout: float | None = None) -> JobInfo:
        """Ask a job to end, and to take back what is half done."""
        found: JobInfo = await self._ask(timeout, "cancel_job", id)
        return found

    async def create_join_token(self, ttl_s: float = 0.0, roles: Sequence[str] = (), *,
                          timeout: float | None = None) -> NewJoinToken:
        """A token for nodes to join with; its secret is told this once.  ``ttl_s`` 0: an hour."""
        made: NewJoinToken = await self._ask(timeout, "create_join_token", float(ttl_s), tuple(roles))
        return made

    async def join_tokens(self, *, timeout: float | None = None) -> list[JoinToken]:
        """Those that are good or have expired."""
        found: list[JoinToken] = await self._ask(timeout, "join_tokens")
        return found

    async def revoke_join_token(self, id: str, *, timeout: float | None = None) -> None:
        """End a token."""
        await self._ask(timeout, "revoke_join_token", check_text("id", id))

    async def activate_node(self, node: str, *, timeout: float | None = None) -> None:
        """Use a node again that was drained."""
        await self._ask(timeout, "activate_node", check_text("node", node))

    async def remove_node(self, node: str, *, timeout: float | None = None) -> None:
        """Take a node that holds nothing out of the cluster."""
        await self._ask(timeout, "remove_node", check_text("node", node))

    async def set(self, name: str, value: float | None, *, timeout: float | None = None) -> None:
        """Set a setting of the cluster; None: its default again."""
        await self._ask(timeout, "set_cluster_setting", check_text("name", name), value)
