"""The composition root of a node: ``vecdb serve``.

One event loop (uvloop) carries gRPC and HTTP; kernels run in threads without the GIL.  :func:`start` puts a node
together and serves, :func:`run_node` does so until a signal comes and then drains it.  :mod:`vecdb.serving.cluster` is
what a node of a cluster has beside its engine: logs and their driver on the same loop, and a listener for other nodes.

**Starting.**  The directory is opened and the ports are bound first, so that what is wrong is told at once; then
kernels are compiled or loaded, and only then do health checks say SERVING.

**Many cores.**  With ``server.processes`` above one the engine's process listens on a Unix socket in a folder of its
own, and so many front processes (:mod:`vecdb.serving.front`), started by exec, share the public port before it.

**Stopping.**  Health and readiness say no, new calls are refused, running ones have ``server.drain_s`` to end; then
jobs stop, everything is made durable, and the directory is let go.  A second signal ends the wait.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vecdb.serving.compose import Running, start
    from vecdb.serving.run import AGAIN, run_node

# A node forks only to exec: gRPC's handlers for other forks would complain of its threads at each front that starts.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# Its core writes lines of its own to stderr, for every handshake that fails; what matters of them we tell ourselves.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

__all__ = ["AGAIN", "Running", "run_node", "start"]


def __getattr__(name: str) -> Any:
    """By need: a front process lives in this package too, and has no use for the engine."""
    if name not in __all__:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"{__name__}.{'run' if name in ('AGAIN', 'run_node') else 'compose'}"), name)
