"""The Operations service: the cluster for those who run it.  All of it is an admin's of the whole server, and audited
where it changes something.
"""

from collections.abc import Callable

from vecdb.core.access import Role
from vecdb.core.calls import MAX_KEY_BYTES, WriteToken
from vecdb.core.errors import LimitExceeded
from vecdb.ports.operations import Operations
from vecdb.rpc.methods import Context, Method
from vecdb.v1 import operations_pb2 as pb
from vecdb.wire import operations as wire


class OperationsServicer:
    """``operations``: of this node; asked for with each call, as a node may not be of a cluster yet."""

    def __init__(self, operations: Callable[[], Operations]) -> None:
        self._operations = operations

    def methods(self) -> list[Method]:
        def reads(name: str, request: type, handle: object) -> Method:
            return Method(f"Operations/{name}", request, Role.ADMIN, unary=handle)  # type: ignore[arg-type]

        def changes(name: str, request: type, handle: object) -> Method:
            return Method(f"Operations/{name}", request, Role.ADMIN, audited=True,
                          unary=handle)  # type: ignore[arg-type]

        return [
            reads("GetCluster", pb.GetClusterRequest, self.get_cluster),
            reads("ListClusterJobs", pb.ListClusterJobsRequest, self.list_jobs),
            reads("PlanJob", pb.PlanJobRequest, self.plan_job),
            changes("BeginJob", pb.BeginJobRequest, self.begin_job),
            changes("CancelJob", pb.CancelJobRequest, self.cancel_job),
            changes("CreateJoinToken", pb.CreateJoinTokenRequest, self.create_join_token),
            reads("ListJoinTokens", pb.ListJoinTokensRequest, self.list_join_tokens),
            changes("RevokeJoinToken", pb.RevokeJoinTokenRequest, self.revoke_join_token),
            changes("ActivateNode", pb.ActivateNodeRequest, self.activate_node),
            changes("RemoveNode", pb.RemoveNodeRequest, self.remove_node),
            changes("SetClusterSetting", pb.SetClusterSettingRequest, self.set_setting),
        ]

    async def get_cluster(self, message: pb.GetClusterRequest, context: Context) -> pb.GetClusterReply:
        return wire.cluster_to_wire(await self._operations().cluster(context.call))

    async def list_jobs(self, message: pb.ListClusterJobsRequest, context: Context) -> pb.ListClusterJobsReply:
        found = await self._operations().cluster_jobs(context.call, id=message.id, ended=message.ended)
        return pb.ListClusterJobsReply(jobs=[wire.job_to_wire(one) for one in found])

    async def plan_job(self, message: pb.PlanJobRequest, context: Context) -> pb.PlanJobReply:
        kind, target, args = wire.description_from_wire(message.job)
        return wire.plan_to_wire(await self._operations().plan_job(kind, target, args, context.call))

    async def begin_job(self, message: pb.BeginJobRequest, context: Context) -> pb.BeginJobReply:
        kind, target, args = wire.description_from_wire(message.job)
        if len(message.idempotency_key) > MAX_KEY_BYTES:
            raise LimitExceeded("idempotency_key", "is too long", got=len(message.idempotency_key),
                                limit=MAX_KEY_BYTES)
        if message.idempotency_key:
            context.call.token = WriteToken(message.idempotency_key)
        return pb.BeginJobReply(id=await self._operations().begin_job(kind, target, args, context.call))

    async def cancel_job(self, message: pb.CancelJobRequest, context: Context) -> pb.CancelJobReply:
        return pb.CancelJobReply(job=wire.job_to_wire(await self._operations().cancel_job(message.id, context.call)))

    async def create_join_token(self, message: pb.CreateJoinTokenRequest, context: Context) -> pb.CreateJoinTokenReply:
        made = await self._operations().create_join_token(message.ttl_s, tuple(message.roles), context.call)
        return pb.CreateJoinTokenReply(token=made.secret, about=wire.token_to_wire(made.token))

    async def list_join_tokens(self, message: pb.ListJoinTokensRequest, context: Context) -> pb.ListJoinTokensReply:
        found = await self._operations().join_tokens(context.call)
        return pb.ListJoinTokensReply(tokens=[wire.token_to_wire(one) for one in found])

    async def revoke_join_token(self, message: pb.RevokeJoinTokenRequest, context: Context) -> pb.RevokeJoinTokenReply:
        await self._operations().revoke_join_token(message.id, context.call)
        return pb.RevokeJoinTokenReply()

    async def activate_node(self, message: pb.ActivateNodeRequest, context: Context) -> pb.ActivateNodeReply:
        await self._operations().activate_node(message.node, context.call)
        return pb.ActivateNodeReply()

    async def remove_node(self, message: pb.RemoveNodeRequest, context: Context) -> pb.RemoveNodeReply:
        await self._operations().remove_node(message.node, context.call)
        return pb.RemoveNodeReply()

    async def set_setting(self, message: pb.SetClusterSettingRequest, context: Context) -> pb.SetClusterSettingReply:
        value = wire.json_from_wire("value", message.value_json or b"null")
        await self._operations().set_cluster_setting(message.name, value, context.call)
        return pb.SetClusterSettingReply()
