"""The internal Backups service: what a node does for snapshots, for other nodes; and theirs."""

from vecdb.core.access import Role
from vecdb.core.calls import Call
from vecdb.core.cluster import MAX_COLLECTION_SHARDS
from vecdb.core.errors import InvalidArgument
from vecdb.internal.v1 import backups_pb2 as pb
from vecdb.internal.v1 import copies_pb2
from vecdb.ports.backups import BackupOrder, Backups, BackupStatus
from vecdb.ports.copies import CopyTarget
from vecdb.rpc.methods import Context, Method
from vecdb.rpc.peers import RemoteReplicas

_CHARACTERS = 1_000
_PROBLEMS = 20


class BackupsServicer:
    """For an edge with the prefix :data:`~vecdb.rpc.peer.PEER_PREFIX`."""

    def __init__(self, backups: Backups) -> None:
        self._backups = backups

    def methods(self) -> list[Method]:
        return [
            Method("Backups/Start", pb.BackupOrder, Role.ADMIN, unary=self.start),
            Method("Backups/Stop", pb.BackupStop, Role.ADMIN, unary=self.stop),
        ]

    async def start(self, message: pb.BackupOrder, context: Context) -> pb.BackupStatus:
        return _status_to_wire(await self._backups.start(_order_from_wire(message), context.call))

    async def stop(self, message: pb.BackupStop, context: Context) -> pb.BackupStopped:
        await self._backups.stop(message.job, context.call)
        return pb.BackupStopped()


class RemoteBackups:
    """:class:`~vecdb.ports.backups.Backups` of another node, over the way its replicas are asked."""

    def __init__(self, replicas: RemoteReplicas) -> None:
        self._replicas = replicas

    async def start(self, order: BackupOrder, call: Call) -> BackupStatus:
        return _status_from_wire(await self._replicas.call("Backups/Start", _order_to_wire(order), pb.BackupStatus,
                                                           call))

    async def stop(self, job: int, call: Call) -> None:
        await self._replicas.call("Backups/Stop", pb.BackupStop(job=job), pb.BackupStopped, call)


def _order_to_wire(order: BackupOrder) -> pb.BackupOrder:
    targets = [copies_pb2.CopyTarget(group=one.group, lo=one.lo, last=one.hi - 1, nodes=one.nodes)
               for one in order.targets]
    return pb.BackupOrder(job=order.job, kind=order.kind, item=order.item, url=order.url, snapshot=order.snapshot,
                          bytes_per_s=order.bytes_per_s, collection=order.collection, targets=targets,
                          after=order.after, batches=order.batches)


def _order_from_wire(msg: pb.BackupOrder) -> BackupOrder:
    """Raises ``InvalidArgument`` unless the targets follow one another."""
    targets = tuple(CopyTarget(one.group, one.lo, one.last + 1, tuple(one.nodes)) for one in msg.targets)
    if len(targets) > MAX_COLLECTION_SHARDS or any(one.lo >= one.hi for one in targets) or \
            [one.lo for one in targets[1:]] != [one.hi for one in targets[:-1]] or \
            not all(one.nodes and one.group for one in targets) or not msg.job or msg.after < -1:
        raise InvalidArgument("targets", "must follow one another",
                              got=[(one.group, str(one.lo), str(one.hi)) for one in targets[:16]], limit="ranges")
    return BackupOrder(msg.job, msg.kind, msg.item, msg.url, msg.snapshot, msg.bytes_per_s, msg.collection, targets,
                       msg.after, msg.batches)


def _status_to_wire(one: BackupStatus) -> pb.BackupStatus:
    return pb.BackupStatus(state=one.state, done=one.done, total=one.total, moved=one.moved, records=one.records,
                           after=one.after, batches=one.batches, error=one.error[:_CHARACTERS], passes=one.passes,
                           problems=[text[:_CHARACTERS] for text in one.problems[:_PROBLEMS]])


def _status_from_wire(msg: pb.BackupStatus) -> BackupStatus:
    return BackupStatus(msg.state, msg.done, msg.total, msg.moved, msg.records, msg.after, msg.batches, msg.error,
                        msg.passes, tuple(msg.problems))
