"""From a URL and options to an open connection."""

from typing import Any

from vecdb.client.remote.backend import RemoteBackend
from vecdb.client.remote.node import RemoteNode
from vecdb.client.remote.options import Options, check
from vecdb.client.remote.target import Target, parse
from vecdb.ports import tracing


def _checked(url: str, api_key: str | None, given: dict[str, Any]) -> tuple[Target, Options]:
    target = parse(url)
    options = check(target, api_key, given)
    tracing.adopt()
    return target, options


def open_backend(url: str, api_key: str | None, given: dict[str, Any]) -> tuple[RemoteBackend, str]:
    """Check everything, connect, and return the backend and what to call it."""
    target, options = _checked(url, api_key, given)
    backend = RemoteBackend(target, options)
    try:
        if options.connect_timeout > 0:
            backend.wait(options.connect_timeout)
    except BaseException:
        backend.close()
        raise
    return backend, target.label


async def open_node(url: str, api_key: str | None, given: dict[str, Any]) -> tuple[RemoteNode, str]:
    """The same for the running event loop."""
    target, options = _checked(url, api_key, given)
    node = RemoteNode(target, options)
    try:
        if options.connect_timeout > 0:
            await node.wait(options.connect_timeout)
    except BaseException:
        await node.close()
        raise
    return node, target.label
