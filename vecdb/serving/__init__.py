"""The composition root of a node: ``vecdb serve``.

One event loop (uvloop) carries gRPC and HTTP; kernels run in threads without the GIL.  :func:`start` puts a node
together and serves, :func:`run_node` does so until a signal comes and then drains it.

**Starting.**  The directory is opened and the ports are bound first, so that what is wrong is told at once; then
kernels are compiled or loaded, and only then do health checks say SERVING.

**Stopping.**  Health and readiness say no, new calls are refused, running ones have ``server.drain_s`` to end; then
jobs stop, everything is made durable, and the directory is let go.  A second signal ends the wait.
"""

from vecdb.serving.compose import Running, start
from vecdb.serving.run import run_node

__all__ = ["Running", "run_node", "start"]
