"""Nodes tell each other how far they are with founding the control group: one small call on the peer port."""

from collections.abc import Callable
from typing import Any, Final, Protocol

import grpc

from vecdb.cluster.founding import Founding
from vecdb.core.errors import Unavailable
from vecdb.internal.v1 import founding_pb2 as pb

METHOD: Final = "/vecdb.internal.v1.Founding/Ask"
TIMEOUT_S: Final = 2.0


class Channels(Protocol):
    """:class:`vecdb.rpc.peer_channels.PeerChannels`."""

    def channel(self, node: str) -> Any: ...


class FoundingService(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs alone
    """For a :class:`~vecdb.rpc.peers_server.PeerServer`.  ``told`` says, at every call, what is on stable storage."""

    def __init__(self, told: Callable[[], Founding | None]) -> None:
        self._told = told
        self._handler = grpc.unary_unary_rpc_method_handler(
            self._ask, request_deserializer=pb.FoundingRequest.FromString,
            response_serializer=pb.FoundingReply.SerializeToString)

    def service(self, handler_call_details: Any) -> Any:
        return self._handler if handler_call_details.method == METHOD else None

    async def _ask(self, _: pb.FoundingRequest, context: Any) -> pb.FoundingReply:
        told = self._told()
        if told is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this node does not know its number yet")
            raise Unavailable("aborted")
        return pb.FoundingReply(number=told.number, forming=told.forming, members=told.members, joined=told.joined)


class FoundingPeers:
    """The other nodes as :class:`vecdb.services.founding.Witnesses`."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def founding(self, node: str) -> Founding:
        ask = self._channels.channel(node).unary_unary(
            METHOD, request_serializer=pb.FoundingRequest.SerializeToString,
            response_deserializer=pb.FoundingReply.FromString)
        try:
            reply = await ask(pb.FoundingRequest(), timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise Unavailable(f"{node} does not say how far it is: {error.details()}", node=node) from error
        return Founding(reply.number, tuple(reply.forming), tuple(reply.members), reply.joined)
