"""What nodes ask of each other's replicas, on the peer port: servicers there, and clients here.

Records are read by the public services, which a node also offers on this port, over its own replicas alone
(:class:`~vecdb.services.replicas.OwnReplicas`).  Who calls is a node, as its certificate proves; for whom it does was
checked where the call came in and is told for logs (:data:`PRINCIPAL`), with the request's id and its trace.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from vecdb.cluster.founding import Founding
from vecdb.core.access import EVERYTHING, Principal, Role
from vecdb.core.calls import MAX_KEY_BYTES, Call, Stopped, WriteToken
from vecdb.core.errors import (
    DeadlineExceeded,
    InvalidArgument,
    JoinRefused,
    NodeRemoved,
    OutcomeUnknown,
    Unavailable,
    VecdbError,
)
from vecdb.core.layout import ANYHOW, Layout
from vecdb.core.limits import MAX_BATCH_BYTES
from vecdb.core.records import WriteResult
from vecdb.core.schema import CollectionSchema
from vecdb.internal.v1 import shards_pb2 as pb
from vecdb.ports import context as request_context
from vecdb.ports import tracing
from vecdb.ports.clock import Clock
from vecdb.ports.node import Node
from vecdb.ports.observer import NullObserver
from vecdb.ports.replicator import Committed, ReplicaStatus
from vecdb.rpc.door import Guards
from vecdb.rpc.methods import Context, Method
from vecdb.rpc.peer import PEER_PREFIX, peer_guards
from vecdb.rpc.peer_twins import TWICE
from vecdb.rpc.probing import Probes
from vecdb.rpc.reasons import short
from vecdb.rpc.shard_reads import ReadReplicas, ReadsServicer, RemoteShardReads
from vecdb.shard.marks import MarkResult
from vecdb.wire import convert, status
from vecdb.wire.large import with_bytes

M = TypeVar("M", bound=Message)

PRINCIPAL: Final = "x-vecdb-principal-bin"
"""In bytes, for a key's name may be of any script."""
COMMAND_BYTES: Final = MAX_BATCH_BYTES + (2 << 20)
DETAILS: Final = "grpc-status-details-bin"
REFUSED: Final = "vecdb-refused"
"""In the trailing metadata of what the listener's guard refused."""
_OURS: Final = b"/vecdb.v1.Error"
_NOT_SENT: Final = re.compile(r"failed to connect|connections to all backends failing|empty address list|"
                              r"(DNS|name|address) resolution failed|Domain name not found|"
                              r"(channel|connection) .*(closed|shutdown)", re.IGNORECASE)
"""The channel had no connection: the call never left."""


class Channels(Protocol):
    """:class:`vecdb.rpc.peer_channels.PeerChannels`."""

    def channel(self, node: str) -> Any: ...


# --- who calls ------------------------------------------------------------------------------------


class _Nodes:
    """Who got past the listener's guard is a node of the cluster, and speaks for whom it says."""

    def check(self, metadata: Any, peer: str, certificate: str = "") -> Principal:
        told = next((value for key, value in metadata if key == PRINCIPAL and isinstance(value, bytes)), b"")
        return Principal("", told[:256].decode("utf-8", "replace") or "peer", EVERYTHING)


def cluster_guards(guards: Guards) -> Guards:
    """For edges on the peer port: a call was counted, limited and allowed where it came in."""
    return replace(peer_guards(guards), authenticator=_Nodes(), observer=NullObserver(), certificates=False,
                   relayed=False)


# --- the servicer ---------------------------------------------------------------------------------


class ReplicasServicer:
    """The internal Shards service over this node's replicas, for an edge with the prefix :data:`PEER_PREFIX`."""

    def __init__(self, replicas: ReadReplicas) -> None:
        self._replicas = replicas

    def methods(self) -> list[Method]:
        return [
            *ReadsServicer(self._replicas).methods(),
            Method("Shards/Propose", pb.ProposeRequest, Role.ADMIN, most_bytes=COMMAND_BYTES, unary=self.propose),
            Method("Shards/Change", pb.ChangeRequest, Role.ADMIN, unary=self.change),
            Method("Shards/ReadIndex", pb.ReadIndexRequest, Role.READ, unary=self.read_index),
            Method("Shards/Status", pb.StatusRequest, Role.READ, unary=self.status),
            Method("Shards/Mark", pb.MarkRequest, Role.READ, unary=self.mark),
            Method("Shards/Transfer", pb.TransferRequest, Role.ADMIN, unary=self.transfer),
            Method("Shards/Rebuild", pb.RebuildRequest, Role.ADMIN, unary=self.rebuild),
        ]

    async def propose(self, message: pb.ProposeRequest, context: Context) -> pb.ProposeReply:
        done = await self._replicas.propose(message.group, message.command, context.call)
        reply = pb.ProposeReply(log_index=done.log_index)
        if isinstance(done.result, WriteResult):
            reply.write.CopyFrom(convert.write_result_to_wire(done.result))
        elif isinstance(done.result, MarkResult):
            reply.mark.CopyFrom(_mark_to_wire(done.result))
        return reply

    async def change(self, message: pb.ChangeRequest, context: Context) -> pb.ChangeReply:
        if not 0 < len(message.idempotency_key) <= MAX_KEY_BYTES:
            raise InvalidArgument("idempotency_key", "is what makes a change happen once",
                                  got=len(message.idempotency_key), limit=f"1..{MAX_KEY_BYTES} bytes")
        context.call.token = WriteToken(message.idempotency_key)
        what: CollectionSchema | str = message.drop
        if message.WhichOneof("change") == "create":
            what = convert.schema_from_wire(message.create)
        layout = convert.layout_from_wire(message)
        return pb.ChangeReply(log_index=await self._replicas.change(what, context.call, layout))

    async def read_index(self, message: pb.ReadIndexRequest, context: Context) -> pb.ReadIndexReply:
        return pb.ReadIndexReply(log_index=await self._replicas.read_index(message.group, context.call))

    async def status(self, message: pb.StatusRequest, context: Context) -> pb.StatusReply:
        found = await self._replicas.status(tuple(message.groups), context.call)
        return pb.StatusReply(replicas=[_status_to_wire(group, one) for group, one in found.items()])

    async def mark(self, message: pb.MarkRequest, context: Context) -> pb.MarkReply:
        return pb.MarkReply(mark=_mark_to_wire(await self._replicas.mark(message.group, message.log_index,
                                                                         context.call)))

    async def transfer(self, message: pb.TransferRequest, context: Context) -> pb.TransferReply:
        await self._replicas.transfer(message.group, message.to or None, context.call)
        return pb.TransferReply()

    async def rebuild(self, message: pb.RebuildRequest, context: Context) -> pb.RebuildReply:
        await self._replicas.rebuild(message.group, context.call)
        return pb.RebuildReply()


class FoundingServicer:
    """``founding()``: how far this node is, None while it does not know."""

    def __init__(self, founding: Callable[[], Founding | None]) -> None:
        self._founding = founding

    def methods(self) -> list[Method]:
        return [Method("Shards/Founding", pb.FoundingRequest, Role.READ, unary=self.founding)]

    async def founding(self, message: pb.FoundingRequest, context: Context) -> pb.FoundingReply:
        found = self._founding()
        if found is None:
            raise Unavailable("this node does not know yet how far it is", retry_after_s=0.1)
        return pb.FoundingReply(number=found.number, forming=found.forming, members=found.members,
                                joined=found.joined)


def _mark_to_wire(mark: MarkResult) -> pb.MarkResult:
    return pb.MarkResult(log_index=mark.log_index, term=mark.term, records=mark.records, digest=mark.digest)


def _mark_from_wire(msg: pb.MarkResult) -> MarkResult:
    return MarkResult(msg.log_index, msg.term, msg.records, msg.digest)


def _status_to_wire(group: int, one: ReplicaStatus) -> pb.ReplicaStatus:
    return pb.ReplicaStatus(
        group=group, me=one.me, state=one.state, role=one.role, term=one.term, leader=one.leader or "",
        commit=one.commit, applied=one.applied, first=one.first, last=one.last, log_bytes=one.log_bytes,
        voters=one.voters, learners=one.learners, joining=one.joining, error=one.error[:1_000],
        stale=not one.current)


def _status_from_wire(msg: pb.ReplicaStatus) -> ReplicaStatus:
    return ReplicaStatus(
        me=msg.me, state=msg.state, role=msg.role, term=msg.term, leader=msg.leader or None, commit=msg.commit,
        applied=msg.applied, first=msg.first, last=msg.last, log_bytes=msg.log_bytes, voters=tuple(msg.voters),
        learners=tuple(msg.learners), joining=tuple(msg.joining), error=msg.error,
        current=not msg.stale)


# --- clients --------------------------------------------------------------------------------------


def _told(given: Sequence[tuple[str, Any]] | None) -> list[tuple[str, Any]]:
    """Metadata of a call with whom it is for."""
    told = list(given or ())
    principal = request_context.current().principal
    if principal:
        told.append((PRINCIPAL, principal.encode()[:256]))
    return told


class PeerChannel:
    """As a ``grpc.aio`` channel to one node, for clients that keep theirs: each call takes the one of the moment."""

    def __init__(self, channels: Channels, node: str) -> None:
        self._channels = channels
        self._node = node
        me = getattr(channels, "node", "")
        self.label = f"of node {node} (called by {me})" if me else f"of node {node}"
        """For errors of calls that do not get there."""

    def _method(self, kind: str, path: str) -> Callable[..., Any]:
        def call(*args: Any, metadata: Any = None, **more: Any) -> Any:
            method = getattr(self._channels.channel(self._node), kind)(path)
            return method(*args, metadata=_told(metadata), **more)

        return call

    def unary_unary(self, path: str) -> Callable[..., Any]:
        return self._method("unary_unary", path)

    def unary_stream(self, path: str) -> Callable[..., Any]:
        return self._method("unary_stream", path)

    def stream_stream(self, path: str) -> Callable[..., Any]:
        return self._method("stream_stream", path)

    async def close(self, grace: float | None = None) -> None:
        """The channels' own end is their owner's."""


class RemoteReplicas(RemoteShardReads):
    """:class:`~vecdb.ports.peers.Replicas` of another node."""

    def __init__(self, channels: Channels, node: str, clock: Clock) -> None:
        self._channel = PeerChannel(channels, node)
        self._node = node
        self._clock = clock

    async def _call(self, method: str, message: Message, kind: type[M], call: Call, *, write: bool = False) -> M:
        return await self.call(f"Shards/{method}", message, kind, call, write=write)

    async def call(self, method: str, message: Message | bytes, kind: type[M], call: Call, *,
                   write: bool = False) -> M:
        """Any internal method, as ``Service/Method``, of the same node; ``write``: it must not be lost silently."""
        payload = message if isinstance(message, bytes) else message.SerializeToString()
        metadata: list[tuple[str, str]] = [("x-request-id", call.request_id)] if call.request_id else []
        tracer = tracing.get()
        if not tracer.enabled:
            return await self._sent(method, payload, kind, call, metadata, write)
        with tracer.start(f"vecdb.internal.v1.{method}", tracing.Kind.CLIENT):
            tracer.inject(metadata)
            return await self._sent(method, payload, kind, call, metadata, write)

    async def _sent(self, method: str, payload: bytes, kind: type[M], call: Call, metadata: Any, write: bool) -> M:
        left = None if call.deadline is None else call.deadline - self._clock.monotonic()
        if left is not None and left <= 0.0:
            raise DeadlineExceeded("the deadline passed before the call was handed on")
        path = f"{PEER_PREFIX}{method}"
        try:
            raw = await self._channel.unary_unary(path)(payload, timeout=left, metadata=metadata)
            return kind.FromString(raw)
        except grpc.aio.AioRpcError as error:
            raise failure(error, self._node, write) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and not task.cancelling():  # the channel was closed under it: gRPC says it like this
                kind_of = OutcomeUnknown if write else Unavailable
                raise kind_of(f"the channel to node {self._node} was closed", node=self._node) from None
            call.end(Stopped.CANCELLED)
            raise
        except (grpc.aio.UsageError, InvalidArgument) as error:  # channels were closed: this node stops
            raise Unavailable(f"node {self._node} cannot be asked: {error}", node=self._node) from None
        except DecodeError:
            raise VecdbError(f"the answer of node {self._node} is no {kind.DESCRIPTOR.name}") from None

    async def propose(self, group: int, command: bytes, call: Call) -> Committed:
        payload = b"".join(with_bytes(pb.ProposeRequest(group=group), pb.ProposeRequest.COMMAND_FIELD_NUMBER, command))
        reply = await self.call("Shards/Propose", payload, pb.ProposeReply, call, write=True)
        result = reply.WhichOneof("result")
        if result == "write":
            return Committed(reply.log_index, convert.write_result_from_wire(reply.write))
        return Committed(reply.log_index, _mark_from_wire(reply.mark) if result == "mark" else None)

    async def change(self, what: CollectionSchema | str, call: Call, layout: Layout = ANYHOW) -> int:
        message = pb.ChangeRequest(idempotency_key=b"" if call.token is None else call.token.key,
                                   layout=convert.layout_to_wire(layout))
        if isinstance(what, str):
            message.drop = what
        else:
            message.create.CopyFrom(convert.schema_to_wire(what))
        return (await self._call("Change", message, pb.ChangeReply, call, write=True)).log_index

    async def read_index(self, group: int, call: Call) -> int:
        return (await self._call("ReadIndex", pb.ReadIndexRequest(group=group), pb.ReadIndexReply, call)).log_index

    async def status(self, groups: Sequence[int], call: Call) -> dict[int, ReplicaStatus]:
        reply = await self._call("Status", pb.StatusRequest(groups=groups), pb.StatusReply, call)
        return {one.group: _status_from_wire(one) for one in reply.replicas}

    async def mark(self, group: int, log_index: int, call: Call) -> MarkResult:
        reply = await self._call("Mark", pb.MarkRequest(group=group, log_index=log_index), pb.MarkReply, call)
        return _mark_from_wire(reply.mark)

    async def transfer(self, group: int, to: str | None, call: Call) -> None:
        await self._call("Transfer", pb.TransferRequest(group=group, to=to or ""), pb.TransferReply, call)

    async def rebuild(self, group: int, call: Call) -> None:
        await self._call("Rebuild", pb.RebuildRequest(group=group), pb.RebuildReply, call)

    async def founding(self, call: Call) -> Founding:
        reply = await self._call("Founding", pb.FoundingRequest(), pb.FoundingReply, call)
        return Founding(reply.number, tuple(reply.forming), tuple(reply.members), reply.joined)


class RemoteWitnesses:
    """:class:`vecdb.services.founding.Witnesses` over the cluster's channels; ``probes`` find out more of TLS."""

    def __init__(self, replicas: "RemotePeers", probes: Probes | None = None) -> None:
        self._replicas = replicas
        self._probes = probes

    async def founding(self, node: str) -> Founding:
        try:
            return await self._replicas.replicas(node).founding(Call())
        except Unavailable as error:
            if self._probes is None:
                raise
            raise Unavailable(await self._probes.why(node, error.message), node=node) from None


def failure(error: grpc.aio.AioRpcError, node: str, write: bool) -> VecdbError:
    """What an attempt at another node ended with; of a ``write`` whose end nobody told, ``OutcomeUnknown``."""
    code, text = int(error.code().value[0]), error.details() or ""
    trailing: Any = error.trailing_metadata() or ()
    details = next((value for key, value in trailing if key == DETAILS), None)
    if isinstance(details, bytes) and _OURS in details:
        return status.from_status(code, text, details)
    if any(key == REFUSED and value == "removed" for key, value in trailing):
        removed = NodeRemoved(f"node {node} says: {text[:300]}", node=node)
        removed.here = True
        return removed
    if any(key == REFUSED and value == TWICE for key, value in trailing):
        return JoinRefused(f"node {node} says: {text[:300]}", reason="name_in_use", node=node)
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return Unavailable(f"node {node} does not know this call: {short(text)}", node=node, unknown_call=True)
    unsent = any(key == REFUSED for key, _ in trailing) or bool(_NOT_SENT.search(text))
    if unsent or not write:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"the deadline passed before node {node} answered", node=node)
        return Unavailable(f"node {node} cannot be reached: {short(text)}", node=node)
    return OutcomeUnknown(f"node {node} did not say what became of it: {text[:300]}", node=node)


class RemotePeers:
    """:class:`~vecdb.ports.peers.Peers` over the cluster's channels.

    ``open_node(channel, label)`` makes a client of the public services.
    """

    def __init__(self, channels: Channels, open_node: Callable[[PeerChannel, str], Node], clock: Clock) -> None:
        self._channels = channels
        self._open_node = open_node
        self._clock = clock
        self._nodes: dict[str, Node] = {}
        self._replicas: dict[str, RemoteReplicas] = {}

    def node(self, name: str) -> Node:
        found = self._nodes.get(name)
        if found is None:
            found = self._nodes[name] = self._open_node(PeerChannel(self._channels, name), f"of node {name}")
        return found

    def replicas(self, name: str) -> RemoteReplicas:
        found = self._replicas.get(name)
        if found is None:
            found = self._replicas[name] = RemoteReplicas(self._channels, name, self._clock)
        return found

    @property
    def made(self) -> list[str]:
        """Nodes that there are clients of."""
        return list({**self._nodes, **self._replicas})

    async def forget(self, name: str) -> None:
        """Let go of the clients of a node that is none of the cluster any more."""
        self._replicas.pop(name, None)
        node = self._nodes.pop(name, None)
        if node is not None:
            await node.close()

    async def close(self) -> None:
        """Let go of the clients; the channels are their owner's."""
        nodes, self._nodes = self._nodes, {}
        for node in nodes.values():
            await node.close()
