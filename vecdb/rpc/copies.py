"""The internal Copies service: a node's copiers for other nodes, and other nodes' copiers."""

from vecdb.core.access import Role
from vecdb.core.calls import Call
from vecdb.core.cluster import MAX_COLLECTION_SHARDS
from vecdb.core.errors import InvalidArgument
from vecdb.internal.v1 import copies_pb2 as pb
from vecdb.ports.copies import Copies, CopyOrder, CopyStatus, CopyTarget
from vecdb.rpc.methods import Context, Method
from vecdb.rpc.peers import RemoteReplicas

_ERROR_CHARACTERS = 1_000


class CopiesServicer:
    """For an edge with the prefix :data:`~vecdb.rpc.peer.PEER_PREFIX`."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies

    def methods(self) -> list[Method]:
        return [
            Method("Copies/Start", pb.CopyOrder, Role.ADMIN, unary=self.start),
            Method("Copies/Status", pb.CopyRequest, Role.READ, unary=self.status),
            Method("Copies/Stop", pb.CopyRequest, Role.ADMIN, unary=self.stop),
        ]

    async def start(self, message: pb.CopyOrder, context: Context) -> pb.CopyReply:
        return pb.CopyReply(status=_status_to_wire(await self._copies.start(_order_from_wire(message), context.call)))

    async def status(self, message: pb.CopyRequest, context: Context) -> pb.CopyReply:
        found = await self._copies.status(message.job, message.source, context.call)
        return pb.CopyReply() if found is None else pb.CopyReply(status=_status_to_wire(found))

    async def stop(self, message: pb.CopyRequest, context: Context) -> pb.StopReply:
        await self._copies.stop(message.job, message.source, context.call)
        return pb.StopReply()


class RemoteCopies:
    """:class:`~vecdb.ports.copies.Copies` of another node, over the way its replicas are asked."""

    def __init__(self, replicas: RemoteReplicas) -> None:
        self._replicas = replicas

    async def start(self, order: CopyOrder, call: Call) -> CopyStatus:
        reply = await self._replicas.call("Copies/Start", _order_to_wire(order), pb.CopyReply, call)
        return _status_from_wire(reply.status)

    async def status(self, job: int, source: int, call: Call) -> CopyStatus | None:
        reply = await self._replicas.call("Copies/Status", pb.CopyRequest(job=job, source=source), pb.CopyReply, call)
        return _status_from_wire(reply.status) if reply.HasField("status") else None

    async def stop(self, job: int, source: int, call: Call) -> None:
        await self._replicas.call("Copies/Stop", pb.CopyRequest(job=job, source=source), pb.StopReply, call)


def _order_to_wire(order: CopyOrder) -> pb.CopyOrder:
    targets = [pb.CopyTarget(group=one.group, lo=one.lo, last=one.hi - 1, nodes=one.nodes) for one in order.targets]
    return pb.CopyOrder(job=order.job, fence=order.fence, source=order.source, lo=order.lo, last=order.hi - 1,
                        targets=targets, shard_key=order.shard_key, bytes_per_s=order.bytes_per_s)


def _order_from_wire(msg: pb.CopyOrder) -> CopyOrder:
    """Raises ``InvalidArgument`` unless the targets follow one another and have all of the source's hashes."""
    targets = tuple(CopyTarget(one.group, one.lo, one.last + 1, tuple(one.nodes)) for one in msg.targets)
    ends = [one.hi for one in targets]
    if not 0 < len(targets) <= MAX_COLLECTION_SHARDS or any(one.lo >= one.hi for one in targets) or \
            [one.lo for one in targets[1:]] != ends[:-1] or targets[0].lo > msg.lo or ends[-1] <= msg.last or \
            msg.lo > msg.last or not all(one.nodes and one.group for one in targets):
        raise InvalidArgument("targets", "must follow one another and have all hashes of the source",
                              got=[(one.group, str(one.lo), str(one.hi)) for one in targets[:16]], limit=str(msg.last))
    return CopyOrder(msg.job, msg.fence, msg.source, msg.lo, msg.last + 1, targets, msg.shard_key, msg.bytes_per_s)


def _status_to_wire(one: CopyStatus) -> pb.CopyStatus:
    return pb.CopyStatus(job=one.job, fence=one.fence, source=one.source, state=one.state, records=one.records,
                         total=one.total, bytes=one.bytes, copied_to=one.copied_to, applied=one.applied,
                         error=one.error[:_ERROR_CHARACTERS])


def _status_from_wire(msg: pb.CopyStatus) -> CopyStatus:
    return CopyStatus(msg.job, msg.fence, msg.source, msg.state, msg.records, msg.total, msg.bytes, msg.copied_to,
                      msg.applied, msg.error)
