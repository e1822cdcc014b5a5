"""Channels to the other nodes: one each, for frames and for every other call.

A channel greets with every call (:mod:`vecdb.rpc.peer_names`), shows this node's certificate and accepts only that of
the node it leads to.  A dead connection is found within two seconds by pings, a node that comes back within half a
second, at once when it calls here first (:meth:`PeerChannels.hurry`).  What is found is the connection: a node whose
loop is stuck answers pings, and replication finds it.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

import grpc

from vecdb.core.errors import InvalidArgument
from vecdb.rpc.peer_names import Greeting, certificate_name
from vecdb.rpc.tls import Certificates

KEEPALIVE_MS: Final = 1_000
KEEPALIVE_TIMEOUT_MS: Final = 1_250
CONNECT_MS: Final = 1_500
"""A first packet that is lost is repeated after one second, and a second after three: rather begin again."""
BACKOFF_MS: Final = (50, 500)
STUCK_S: Final = 0.5
"""An attempt to connect that has taken so long may be given up when the node shows that it is there."""
RESOLVE_MS: Final = 1_000
"""How often a name is resolved anew at most, while it leads nowhere."""
LINGER_S: Final = 5.0
"""What calls on a channel that was replaced have to end."""
_AWAY: Final = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.CONNECTING)


class PeerChannels:
    """``addresses``: of all nodes by name, as of the moment it is looked at; ours is not called.  A node whose address
    has changed has a new channel at the next call.  Belongs to one event loop.

    ``tls``: this node's certificate with the cluster's CA; when its files change, new channels take the old ones'
    places.  None: plaintext.
    """

    def __init__(self, node: str, cluster: str, addresses: Mapping[str, str], tls: Certificates | None, *,
                 incarnation: int | None = None) -> None:
        self.node, self.cluster = node, cluster
        self.addresses = addresses
        self.incarnation = time.time_ns() if incarnation is None else incarnation
        self._tls = tls
        self._channels: dict[str, tuple[int, float, Any, str]] = {}
        """By node: of which certificates, since when, the channel, and the address it leads to."""
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    def channel(self, node: str) -> Any:
        """The ``grpc.aio.Channel`` to a node: ask for it again for each call, it is replaced now and then."""
        generation = 0 if self._tls is None else self._tls.generation
        made = self._channels.get(node)
        if made is not None and made[0] == generation and made[3] == self.addresses.get(node):
            return made[2]
        return self._renew(node, generation)

    def hurry(self, node: str) -> bool:
        """The node has shown that it is there: do not wait until the next attempt to reach it.

        Returns whether there is a new channel now: calls that wait on the old one are better made again.
        """
        made = self._channels.get(node)
        if made is None or time.monotonic() - made[1] < STUCK_S or made[2].get_state() not in _AWAY:
            return False
        self._renew(node, made[0])
        return True

    def _renew(self, node: str, generation: int) -> Any:
        if node not in self.addresses or node == self.node or self._closed:
            raise InvalidArgument("node", "is not another node of this cluster", got=node[:80],
                                  limit=sorted(self.addresses))
        self.forget(node)
        address = self.addresses[node]
        channel = self._make(node, address)
        self._channels[node] = (generation, time.monotonic(), channel, address)
        return channel

    def forget(self, node: str) -> None:
        """Let go of the channel to a node; calls on it have a moment to end."""
        old = self._channels.pop(node, None)
        if old is not None:
            task = asyncio.get_running_loop().create_task(old[2].close(LINGER_S))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    @property
    def made(self) -> list[str]:
        """Nodes that there are channels to."""
        return list(self._channels)

    def _make(self, node: str, address: str) -> Any:
        options: list[tuple[str, Any]] = [
            ("grpc.primary_user_agent", Greeting(self.cluster, self.node, node, self.incarnation).agent()),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
            # This is what is waited for (measured with 1.82); by default a minute, whatever the former says.
            ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
            ("grpc.initial_reconnect_backoff_ms", BACKOFF_MS[0]),
            ("grpc.max_reconnect_backoff_ms", BACKOFF_MS[1]),
            # Shared among channels, a new channel would wait where the old one did.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.dns_min_time_between_resolutions_ms", RESOLVE_MS),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),
        ]
        if self._tls is None:
            return grpc.aio.insecure_channel(address, options)
        options.append(("grpc.ssl_target_name_override", certificate_name(node, self.cluster)))
        return grpc.aio.secure_channel(address, self._tls.channel_credentials(), options)

    async def close(self) -> None:
        """End all channels and the calls on them."""
        self._closed = True
        channels, self._channels = self._channels, {}
        for _, _, channel, _ in channels.values():
            await channel.close()
        for task in list(self._ending):
            task.cancel()
        if self._ending:
            await asyncio.wait(self._ending)
