"""What operators ask of a cluster: nodes, jobs, tokens to join with, settings."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

import orjson

from vecdb.client.remote.calling import Caller, read
from vecdb.client.remote.io import Rpc
from vecdb.client.steps import Steps
from vecdb.core.calls import Call
from vecdb.core.cluster import JobInfo, Plan
from vecdb.core.operations import ClusterInfo, JoinToken, NewJoinToken
from vecdb.v1 import operations_pb2 as pb
from vecdb.wire import operations as wire

T = TypeVar("T")

GET: Final = Rpc("Operations/GetCluster")
JOBS: Final = Rpc("Operations/ListClusterJobs")
PLAN: Final = Rpc("Operations/PlanJob")
BEGIN: Final = Rpc("Operations/BeginJob")
CANCEL: Final = Rpc("Operations/CancelJob")
CREATE_TOKEN: Final = Rpc("Operations/CreateJoinToken")
TOKENS: Final = Rpc("Operations/ListJoinTokens")
REVOKE_TOKEN: Final = Rpc("Operations/RevokeJoinToken")
ACTIVATE: Final = Rpc("Operations/ActivateNode")
REMOVE: Final = Rpc("Operations/RemoveNode")
SET: Final = Rpc("Operations/SetClusterSetting")


class OperationsProcedures:
    """As :class:`vecdb.ports.operations.Operations`, in steps."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def cluster(self, call: Call | None = None) -> Steps[ClusterInfo]:
        return wire.cluster_from_wire(read(pb.GetClusterReply, (yield from self._caller.call(GET, b"", call))))

    def cluster_jobs(self, call: Call | None = None, *, id: int = 0, ended: bool = False) -> Steps[list[JobInfo]]:
        payload = pb.ListClusterJobsRequest(id=id, ended=ended).SerializeToString()
        reply = read(pb.ListClusterJobsReply, (yield from self._caller.call(JOBS, payload, call)))
        return [wire.job_from_wire(one) for one in reply.jobs]

    def plan_job(self, kind: str, target: str, args: Mapping[str, Any], call: Call | None = None) -> Steps[Plan]:
        message = pb.PlanJobRequest(job=wire.description_to_wire(kind, target, args))
        raw = yield from self._caller.call(PLAN, message.SerializeToString(), call)
        return wire.plan_from_wire(read(pb.PlanJobReply, raw))

    def begin_job(self, kind: str, target: str, args: Mapping[str, Any], call: Call | None = None) -> Steps[int]:
        """Once for the call's key: without one it is not repeated when its end is not known."""
        key = b"" if call is None or call.token is None else call.token.key
        message = pb.BeginJobRequest(job=wire.description_to_wire(kind, target, args), idempotency_key=key)
        raw = yield from self._caller.call(BEGIN, message.SerializeToString(), call, write=True, repeat=bool(key))
        return read(pb.BeginJobReply, raw).id

    def cancel_job(self, id: int, call: Call | None = None) -> Steps[JobInfo]:
        payload = pb.CancelJobRequest(id=id).SerializeToString()
        return wire.job_from_wire(read(pb.CancelJobReply, (yield from self._caller.call(CANCEL, payload, call,
                                                                                        write=True))).job)

    def create_join_token(self, ttl_s: float, roles: Sequence[str], call: Call | None = None) -> Steps[NewJoinToken]:
        """Not repeated when its end is not known: a token that nobody holds would stay behind."""
        payload = pb.CreateJoinTokenRequest(ttl_s=ttl_s, roles=roles).SerializeToString()
        raw = yield from self._caller.call(CREATE_TOKEN, payload, call, write=True, repeat=False)
        reply = read(pb.CreateJoinTokenReply, raw)
        return NewJoinToken(wire.token_from_wire(reply.about), reply.token)

    def join_tokens(self, call: Call | None = None) -> Steps[list[JoinToken]]:
        reply = read(pb.ListJoinTokensReply, (yield from self._caller.call(TOKENS, b"", call)))
        return [wire.token_from_wire(one) for one in reply.tokens]

    def revoke_join_token(self, id: str, call: Call | None = None) -> Steps[None]:
        yield from self._caller.call(REVOKE_TOKEN, pb.RevokeJoinTokenRequest(id=id).SerializeToString(), call,
                                     write=True)

    def activate_node(self, node: str, call: Call | None = None) -> Steps[None]:
        yield from self._caller.call(ACTIVATE, pb.ActivateNodeRequest(node=node).SerializeToString(), call, write=True)

    def remove_node(self, node: str, call: Call | None = None) -> Steps[None]:
        yield from self._caller.call(REMOVE, pb.RemoveNodeRequest(node=node).SerializeToString(), call, write=True)

    def set_cluster_setting(self, name: str, value: Any, call: Call | None = None) -> Steps[None]:
        message = pb.SetClusterSettingRequest(name=name, value_json=orjson.dumps(value))
        yield from self._caller.call(SET, message.SerializeToString(), call, write=True)


class Run(Protocol):
    """Carries out steps in the event loop: of :class:`vecdb.client.remote.node.RemoteNode`."""

    async def __call__(self, steps: Steps[T], call: Call | None = None, /) -> T: ...


class RemoteOperations:
    """Another node's :class:`vecdb.ports.operations.Operations`, awaited."""

    def __init__(self, run: Run, procedures: OperationsProcedures) -> None:
        self._run = run
        self._do = procedures

    async def cluster(self, call: Call) -> ClusterInfo:
        return await self._run(self._do.cluster(call), call)

    async def cluster_jobs(self, call: Call, *, id: int = 0, ended: bool = False) -> list[JobInfo]:
        return await self._run(self._do.cluster_jobs(call, id=id, ended=ended), call)

    async def plan_job(self, kind: str, target: str, args: Mapping[str, Any], call: Call) -> Plan:
        return await self._run(self._do.plan_job(kind, target, args, call), call)

    async def begin_job(self, kind: str, target: str, args: Mapping[str, Any], call: Call) -> int:
        return await self._run(self._do.begin_job(kind, target, args, call), call)

    async def cancel_job(self, id: int, call: Call) -> JobInfo:
        return await self._run(self._do.cancel_job(id, call), call)

    async def create_join_token(self, ttl_s: float, roles: Sequence[str], call: Call) -> NewJoinToken:
        return await self._run(self._do.create_join_token(ttl_s, roles, call), call)

    async def join_tokens(self, call: Call) -> list[JoinToken]:
        return await self._run(self._do.join_tokens(call), call)

    async def revoke_join_token(self, id: str, call: Call) -> None:
        await self._run(self._do.revoke_join_token(id, call), call)

    async def activate_node(self, node: str, call: Call) -> None:
        await self._run(self._do.activate_node(node, call), call)

    async def remove_node(self, node: str, call: Call) -> None:
        await self._run(self._do.remove_node(node, call), call)

    async def set_cluster_setting(self, name: str, value: Any, call: Call) -> None:
        await self._run(self._do.set_cluster_setting(name, value, call), call)
