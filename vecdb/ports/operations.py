"""What a node does for operators of its cluster.

Met by :class:`vecdb.services.administration.Administration` and by a client of another node.  A node that is of no
cluster raises ``Unsupported``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from vecdb.core.calls import Call
from vecdb.core.cluster import JobInfo, Plan
from vecdb.core.operations import ClusterInfo, JoinToken, NewJoinToken


class Operations(Protocol):
    """Errors are ``InvalidArgument`` for what makes no sense, ``Unavailable`` for what cannot be done now."""

    async def cluster(self, call: Call) -> ClusterInfo: ...

    async def cluster_jobs(self, call: Call, *, id: int = 0, ended: bool = False) -> list[JobInfo]:
        """By number; ``id``: that one alone (``InvalidArgument`` if there is none)."""
        ...

    async def plan_job(self, kind: str, target: str, args: Mapping[str, Any], call: Call) -> Plan:
        """What the job would do now."""
        ...

    async def begin_job(self, kind: str, target: str, args: Mapping[str, Any], call: Call) -> int:
        """Its number; once for ``call.token``.  Refused as its plan would be."""
        ...

    async def cancel_job(self, id: int, call: Call) -> JobInfo: ...

    async def create_join_token(self, ttl_s: float, roles: Sequence[str], call: Call) -> NewJoinToken: ...

    async def join_tokens(self, call: Call) -> list[JoinToken]: ...

    async def revoke_join_token(self, id: str, call: Call) -> None: ...

    async def activate_node(self, node: str, call: Call) -> None: ...

    async def remove_node(self, node: str, call: Call) -> None: ...

    async def set_cluster_setting(self, name: str, value: Any, call: Call) -> None:
        """``value`` None: the default again."""
        ...
