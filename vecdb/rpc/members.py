"""Joining and announcing, on the wire: what other nodes ask of the Members service, and how it is asked.

A node that joins knows addresses and no names, and gRPC checks a certificate for a name.  So it first looks at the
certificate that the address shows, by a handshake that believes the cluster's authority alone, and then calls the node
of that name (:func:`bearer`).  A certificate of another authority, or of another cluster by the same, ends it there, on
both sides.

Wrong tokens are counted by address, as wrong API keys are: ten at once, then one every two seconds.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final, Protocol

import grpc

from vecdb.cluster.joining import Candidate
from vecdb.cluster.loads import ShardLoad
from vecdb.core.access import Role as KeyRole
from vecdb.core.calls import Call
from vecdb.core.cluster import MAX_SHARDS, Role
from vecdb.core.errors import InvalidArgument, JoinRefused, PermissionDenied, Unavailable, VecdbError
from vecdb.core.nodes import split_address
from vecdb.internal.v1 import members_pb2 as pb
from vecdb.ports.clock import Clock
from vecdb.rpc.auth import Failures, peer_address
from vecdb.rpc.methods import Context, Method
from vecdb.rpc.peer import PEER_PREFIX
from vecdb.rpc.peer_certificates import PeerTlsFiles
from vecdb.rpc.peer_names import Greeting, certificate_name, named
from vecdb.rpc.peer_twins import TWICE
from vecdb.rpc.peers import REFUSED, RemoteReplicas, failure
from vecdb.rpc.peers_server import peer_name
from vecdb.rpc.tls import Certificates
from vecdb.services.announcing import Answer, Report

JOIN: Final = f"{PEER_PREFIX}Members/Join"
CHECK: Final = f"{PEER_PREFIX}Members/Check"
PROCESS: Final = f"{PEER_PREFIX}Members/Process"
OPEN: Final = (JOIN, CHECK)
"""The methods that are open to nodes which are no members."""
MAX_STATS: Final = 64
MAX_HOST: Final = 255
CONNECT_S: Final = 5.0
_REASONS: Final = {"cluster": "cluster", "own_name": "name_in_use", "not_certified": "cluster", TWICE: "name_in_use"}
"""Why the listener's guard refuses who would join, by its kind."""


class Registrar(Protocol):
    """:class:`vecdb.services.joining.Registrar`."""

    async def admit(self, one: Candidate, token: str, call: Call) -> dict[str, str]: ...

    async def check(self, one: Candidate, token: str) -> dict[str, str]: ...

    def clients(self) -> dict[str, str]: ...

    async def announced(self, report: Report) -> Answer: ...


# --- the servicer ---------------------------------------------------------------------------------


class MembersServicer:
    """``leader()``: the node that leads the control group, None where it is not known; ``admit``: asks another node to
    let somebody in; ``votes(node)``: whether it is one of those that may have been asked.  ``incarnation``: of this
    process; ``claimed(host)`` hears that another one speaks by this node's name.
    """

    def __init__(self, me: str, registrar: Registrar, leader: Callable[[], str | None],
                 admit: Callable[[str, Candidate, str, Call], Awaitable[dict[str, str]]],
                 votes: Callable[[str], bool], clock: Clock, incarnation: int = 0,
                 claimed: Callable[[str], None] = lambda host: None) -> None:
        self._me = me
        self._registrar = registrar
        self._leader = leader
        self._admit_at = admit
        self._votes = votes
        self._wrong = Failures(clock)
        self._incarnation = incarnation
        self._claimed = claimed

    def methods(self) -> list[Method]:
        return [Method("Members/Join", pb.JoinRequest, KeyRole.READ, unary=self.join),
                Method("Members/Check", pb.JoinRequest, KeyRole.READ, unary=self.check),
                Method("Members/Admit", pb.AdmitRequest, KeyRole.READ, unary=self.admit),
                Method("Members/Announce", pb.AnnounceRequest, KeyRole.READ, unary=self.announce),
                Method("Members/Process", pb.ProcessRequest, KeyRole.READ, unary=self.process)]

    async def join(self, message: pb.JoinRequest, context: Context) -> pb.JoinReply:
        one, address = _candidate_from_wire(message.node, peer_name(context)), peer_address(context.peer)
        self._wrong.check(address)
        leader = self._leader()
        try:
            if leader is None:
                raise Unavailable("nobody is known to lead the cluster at the moment", retry_after_s=1.0)
            nodes = await (self._registrar.admit(one, message.token, context.call) if leader == self._me else
                           self._admit_at(leader, one, message.token, context.call))
        except JoinRefused as error:
            if error.reason == "token":
                self._wrong.note(address)
            raise
        return pb.JoinReply(nodes=nodes, leader=leader)

    async def check(self, message: pb.JoinRequest, context: Context) -> pb.JoinReply:
        one, address = _candidate_from_wire(message.node, peer_name(context)), peer_address(context.peer)
        self._wrong.check(address)
        try:
            nodes = await self._registrar.check(one, message.token)
        except JoinRefused as error:
            if error.reason == "token":
                self._wrong.note(address)
            raise
        return pb.JoinReply(nodes=nodes, leader=self._leader() or "", clients=self._registrar.clients())

    async def admit(self, message: pb.AdmitRequest, context: Context) -> pb.JoinReply:
        if not self._votes(peer_name(context)):
            raise PermissionDenied("whom a cluster takes in is asked of nodes that vote in it", node=peer_name(context))
        one = _candidate_from_wire(message.join.node, message.name)
        nodes = await self._registrar.admit(one, message.join.token, context.call)
        return pb.JoinReply(nodes=nodes, leader=self._me)

    async def announce(self, message: pb.AnnounceRequest, context: Context) -> pb.AnnounceReply:
        if len(message.stats) > MAX_STATS:
            raise InvalidArgument("stats", "are too many", got=len(message.stats), limit=MAX_STATS)
        if len(message.groups) > MAX_SHARDS or {len(message.bytes), len(message.busy)} != {len(message.groups)}:
            raise InvalidArgument("groups", "are too many, or have no figures each", got=len(message.groups),
                                  limit=MAX_SHARDS)
        shards = {group: ShardLoad(bytes_, busy) for group, bytes_, busy in zip(
            message.groups, message.bytes, message.busy, strict=True) if 0 <= bytes_ < inf and 0 <= busy < inf}
        answer = await self._registrar.announced(Report(
            _candidate_from_wire(message.node, peer_name(context)), message.replica, message.joining,
            message.incarnation, message.wall_s, dict(message.stats), shards))
        return pb.AnnounceReply(wall_s=answer.wall_s, twice=answer.twice)

    async def process(self, message: pb.ProcessRequest, context: Context) -> pb.ProcessReply:
        if message.incarnation != self._incarnation:
            self._claimed(message.host[:MAX_HOST])
        return pb.ProcessReply(incarnation=self._incarnation)


def _candidate_to_wire(one: Candidate) -> pb.Candidate:
    return pb.Candidate(number=one.number, address=one.address, client_address=one.client_address,
                        http_address=one.http_address, role=one.role.value, zone=one.zone, capacity=one.capacity,
                        version=one.version, commands=one.commands)


def _candidate_from_wire(msg: pb.Candidate, name: str) -> Candidate:
    try:
        role = Role(msg.role)
    except ValueError:
        raise InvalidArgument("role", f"{msg.role[:40]!r} is none that this version knows", got=msg.role[:40],
                              limit=[one.value for one in Role]) from None
    return Candidate(name, msg.number, msg.address, msg.client_address, msg.http_address, role, msg.zone, msg.capacity,
                     msg.version, msg.commands)


# --- clients --------------------------------------------------------------------------------------


class RemoteMembers:
    """The Members service of members, by name.  ``ask(node)``: where to call one."""

    def __init__(self, ask: Callable[[str], RemoteReplicas]) -> None:
        self._ask = ask

    async def announce(self, node: str, report: Report, call: Call) -> Answer:
        message = pb.AnnounceRequest(node=_candidate_to_wire(report.node), replica=report.replica,
                                     joining=report.joining, incarnation=report.incarnation, wall_s=report.wall_s,
                                     stats=report.stats, groups=report.shards,
                                     bytes=[one.bytes for one in report.shards.values()],
                                     busy=[one.busy for one in report.shards.values()])
        reply = await self._ask(node).call("Members/Announce", message, pb.AnnounceReply, call)
        return Answer(reply.wall_s, reply.twice)

    async def process(self, node: str, incarnation: int, host: str) -> int:
        """:data:`vecdb.rpc.peer_twins.Ask`."""
        message = pb.ProcessRequest(incarnation=incarnation, host=host)
        return (await self._ask(node).call("Members/Process", message, pb.ProcessReply, Call())).incarnation

    async def admit(self, node: str, one: Candidate, token: str, call: Call) -> dict[str, str]:
        message = pb.AdmitRequest(name=one.name, join=pb.JoinRequest(node=_candidate_to_wire(one), token=token))
        return dict((await self._ask(node).call("Members/Admit", message, pb.JoinReply, call)).nodes)


@dataclass(frozen=True, slots=True)
class Checked:
    """A cluster as a member sees it: its ``nodes`` with where others reach them, who leads the control group (empty:
    not known), and where ``clients`` reach the nodes, of those that have told.
    """

    nodes: dict[str, str]
    leader: str = ""
    clients: dict[str, str] = field(default_factory=dict)


class JoinCalls:
    """The Members service of nodes that are known by their addresses alone: :class:`vecdb.services.joining.Seeds`."""

    def __init__(self, node: str, cluster: PeerTlsFiles, tls: Certificates | None, incarnation: int) -> None:
        self._node = node
        self._cluster = cluster
        self._tls = tls
        self._incarnation = incarnation

    async def join(self, address: str, one: Candidate, token: str, deadline: float) -> tuple[dict[str, str], str]:
        reply = await self._call(JOIN, address, one, token, deadline)
        return dict(reply.nodes), reply.leader

    async def check(self, address: str, one: Candidate, token: str, deadline: float) -> Checked:
        """Whether it would be let in; raises as :meth:`join`."""
        reply = await self._call(CHECK, address, one, token, deadline)
        return Checked(dict(reply.nodes), reply.leader, dict(reply.clients))

    async def _call(self, method: str, address: str, one: Candidate, token: str, deadline: float) -> pb.JoinReply:
        left = deadline - asyncio.get_running_loop().time()
        message = pb.JoinRequest(node=_candidate_to_wire(one), token=token)
        channel = await self._channel(address)
        try:
            raw = await channel.unary_unary(method)(message.SerializeToString(), timeout=max(left, 0.1))
        except grpc.aio.AioRpcError as error:
            raise _refusal(error, address) from None
        finally:
            await channel.close()
        return pb.JoinReply.FromString(raw)

    async def _channel(self, address: str) -> Any:
        name = self._cluster.name
        options: list[tuple[str, Any]] = [
            ("grpc.primary_user_agent", Greeting(name, self._node, self._node, self._incarnation).agent()),
            ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)]
        if self._tls is None:
            return grpc.aio.insecure_channel(address, options)
        node = await bearer(address, self._cluster)
        options.append(("grpc.ssl_target_name_override", certificate_name(node, name)))
        return grpc.aio.secure_channel(address, self._tls.channel_credentials(), options)


def _refusal(error: grpc.aio.AioRpcError, address: str) -> VecdbError:
    trailing: Any = error.trailing_metadata() or ()
    kind = next((value for key, value in trailing if key == REFUSED), "")
    if kind in _REASONS:
        return JoinRefused(f"{address} refuses this node: {error.details()}", reason=_REASONS[kind])
    return failure(error, address, False)


async def bearer(address: str, cluster: PeerTlsFiles) -> str:
    """The node whose certificate an address shows, as the cluster's authority knows it.

    :class:`JoinRefused` where it is of another; ``Unavailable`` where nobody answers.
    """
    context = ssl.create_default_context(cafile=cluster.ca_file)
    context.check_hostname = False  # who it is is what is asked; that it is one of ours is checked
    assert cluster.cert_file is not None
    context.load_cert_chain(cluster.cert_file, cluster.key_file)
    context.set_alpn_protocols(["h2"])
    host, port = split_address(address)
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except ssl.SSLCertVerificationError as error:
        raise JoinRefused(f"{address} shows a certificate that is not by this cluster's authority: "
                          f"{error.verify_message}", reason="cluster") from None
    except (OSError, TimeoutError) as error:
        raise Unavailable(f"{address} cannot be reached: {error or 'no answer'}", retry_after_s=1.0) from None
    try:
        shown = writer.get_extra_info("peercert") or {}
    finally:
        writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                await writer.wait_closed()
    found = [named(value) for kind, value in shown.get("subjectAltName", ()) if kind == "DNS"]
    ours = [node for node, of in found if of == cluster.name]
    if not ours:
        others = sorted({of for _, of in found if of})
        raise JoinRefused(f"{address} shows a certificate of {'the cluster ' + others[0] if others else 'no cluster'}, "
                          f"not of {cluster.name}", reason="cluster")
    return ours[0]

