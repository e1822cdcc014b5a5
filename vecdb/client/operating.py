"""A cluster for those who run it: its nodes, and the jobs that change who holds what."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from vecdb.client.asking import Ask, AskWith
from vecdb.client.deadlines import check_timeout
from vecdb.client.options import check_text
from vecdb.client.session import Session
from vecdb.client.steps import Steps
from vecdb.core.calls import Call, WriteToken
from vecdb.core.cluster import JobInfo, Plan
from vecdb.core.operations import ClusterInfo, JoinToken, NewJoinToken


def ask(method: str, *args: Any, **named: Any) -> Steps[Any]:
    """One thing asked of the cluster."""
    return (yield Ask("operate", method, *args, **named))


def begin(kind: str, target: str, args: Mapping[str, Any]) -> Steps[int]:
    """A job is begun once, however often that is sent."""
    token = WriteToken(os.urandom(16))

    def keyed(call: Call | None) -> Call | None:
        mine = Call() if call is None else call
        mine.token = token
        return mine

    started: int = yield AskWith(keyed, "operate", "begin_job", check_text("kind", kind), target, dict(args))
    return started


class Operating:
    """``Database.admin.cluster``: needs the role admin; what is no cluster says Unsupported."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def _ask(self, timeout: float | None, method: str, *args: Any, **named: Any) -> Any:
        return self._session.run(ask(method, *args, **named), check_timeout(timeout))

    def info(self, *, timeout: float | None = None) -> ClusterInfo:
        """The cluster at a glance: its nodes, how many shards and jobs, its settings."""
        found: ClusterInfo = self._ask(timeout, "cluster")
        return found

    def jobs(self, *, ended: bool = False, timeout: float | None = None) -> list[JobInfo]:
        """By number; ``ended``: those that have ended, too."""
        found: list[JobInfo] = self._ask(timeout, "cluster_jobs", ended=ended)
        return found

    def job(self, id: int, *, timeout: float | None = None) -> JobInfo:
        """JobNotFound if there is none of this number."""
        found: list[JobInfo] = self._ask(timeout, "cluster_jobs", id=id)
        return found[0]

    def plan(self, kind: str, target: str = "", args: Mapping[str, Any] | None = None, *,
             timeout: float | None = None) -> Plan:
        """What a job would do now.  ``kind``: move, replication, drain, repair, rebalance, split, merge, ...

        InvalidArgument for what makes no sense, NodeNotFound, ShardNotFound, ShardBusy while another job splits or
        merges the shard, Unavailable for what cannot be done now.
        """
        found: Plan = self._ask(timeout, "plan_job", check_text("kind", kind), target, dict(args or {}))
        return found

    def begin(self, kind: str, target: str = "", args: Mapping[str, Any] | None = None, *,
              timeout: float | None = None) -> int:
        """Begin a job; its number.  Refused as :meth:`plan` refuses it."""
        started: int = self._session.run(begin(kind, target, args or {}), check_timeout(timeout))
        return started

    def cancel(self, id: int, *, timeout: float | None = None) -> JobInfo:
        """Ask a job to end, and to take back what is half done."""
        found: JobInfo = self._ask(timeout, "cancel_job", id)
        return found

    def create_join_token(self, ttl_s: float = 0.0, roles: Sequence[str] = (), *,
                          timeout: float | None = None) -> NewJoinToken:
        """A token for nodes to join with; its secret is told this once.  ``ttl_s`` 0: an hour."""
        made: NewJoinToken = self._ask(timeout, "create_join_token", float(ttl_s), tuple(roles))
        return made

    def join_tokens(self, *, timeout: float | None = None) -> list[JoinToken]:
        """Those that are good or have expired."""
        found: list[JoinToken] = self._ask(timeout, "join_tokens")
        return found

    def revoke_join_token(self, id: str, *, timeout: float | None = None) -> None:
        """End a token."""
        self._ask(timeout, "revoke_join_token", check_text("id", id))

    def activate_node(self, node: str, *, timeout: float | None = None) -> None:
        """Use a node again that was drained."""
        self._ask(timeout, "activate_node", check_text("node", node))

    def remove_node(self, node: str, *, timeout: float | None = None) -> None:
        """Take a node that holds nothing out of the cluster."""
        self._ask(timeout, "remove_node", check_text("node", node))

    def set(self, name: str, value: float | None, *, timeout: float | None = None) -> None:
        """Set a setting of the cluster; None: its default again."""
        self._ask(timeout, "set_cluster_setting", check_text("name", name), value)
