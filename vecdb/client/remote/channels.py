"""gRPC channels with the options the SDK needs."""

import re
from typing import Any, Final

import grpc

from vecdb.client.remote.options import Options, read_file
from vecdb.client.remote.target import Target
from vecdb.core.errors import InvalidArgument

KEEPALIVE_MS: Final = 30_000
"""A connection that is dead without saying so (a pulled cable, a firewall that forgets) is known within 40 s, while
calls wait on it; idle connections are not pinged."""
KEEPALIVE_SEVERAL_MS: Final = 1_000
ANSWER_SEVERAL_MS: Final = 1_250
"""Where other addresses could answer meanwhile: a node that is frozen or cut off is known within 2.5 s."""
CONNECT_SEVERAL_MS: Final = 3_000
"""How long a connection may take to come about where there are others (20 s otherwise)."""


def arguments(options: Options, several: bool = False) -> list[tuple[str, Any]]:
    """Channel arguments, of one of ``several`` addresses or of the only one.

    Retries are off, for they are ours, and so is the look-up of service configs in DNS.
    """
    answer_ms = ANSWER_SEVERAL_MS if several else 10_000
    out: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.keepalive_time_ms", KEEPALIVE_SEVERAL_MS if several else KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", answer_ms),
        ("grpc.http2.ping_timeout_ms", answer_ms),  # a minute, unless told otherwise, whatever the line above says
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.enable_retries", 0),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.max_metadata_size", 32 << 10),
        ("grpc.primary_user_agent", "vecdb-python"),
    ]
    if several:
        out.append(("grpc.min_reconnect_backoff_ms", CONNECT_SEVERAL_MS))
    if options.server_name is not None:
        out.append(("grpc.ssl_target_name_override", options.server_name))
        out.append(("grpc.default_authority", options.server_name))
    return out


def credentials(target: Target, options: Options) -> Any:
    """TLS credentials, or None for a plain connection; raises InvalidArgument for files that hold no PEM."""
    if not target.secure:
        return None
    ca, key, certificate = (read_file(name, getattr(options, name)) for name in ("ca_file", "key_file", "cert_file"))
    for name, data, word in (("ca_file", ca, b"CERTIFICATE"), ("key_file", key, b"PRIVATE KEY"),
                             ("cert_file", certificate, b"CERTIFICATE")):
        # gRPC would only say at the first call that it cannot connect.
        if data is not None and not re.search(rb"-----BEGIN [A-Z ]*" + word + rb"-----", data):
            raise InvalidArgument(name, f"holds no {word.decode().lower()} in PEM", got=getattr(options, name),
                                  limit="a PEM file")
    return grpc.ssl_channel_credentials(ca, key, certificate)


def open_sync(address: str, secrets: Any, options: Options, several: bool = False) -> Any:
    """A channel for threads."""
    if secrets is None:
        return grpc.insecure_channel(address, arguments(options, several))
    return grpc.secure_channel(address, secrets, arguments(options, several))


def open_aio(address: str, secrets: Any, options: Options, several: bool = False) -> Any:
    """A channel for the running event loop."""
    if secrets is None:
        return grpc.aio.insecure_channel(address, arguments(options, several))
    return grpc.aio.secure_channel(address, secrets, arguments(options, several))
