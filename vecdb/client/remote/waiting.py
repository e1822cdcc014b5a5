"""The first connection: wait for a server that answers, and say why there is none."""

import time
from typing import Final

from vecdb.client.remote.calling import Caller
from vecdb.client.remote.io import Rpc, Sleep, Unary
from vecdb.client.remote.retry import Failed
from vecdb.client.steps import Steps
from vecdb.core.errors import Unavailable

_HEALTH: Final = Rpc("")
_HEALTH.path = "/grpc.health.v1.Health/Check"
_STEP_S: Final = 0.2


def connect_steps(caller: Caller, deadline: float) -> Steps[None]:
    """Ask for the server's health until anything answers: a refusal is an answer too.

    The request is empty (health of the whole server) and the reply is not looked at: a server that is starting
    says so itself at the first call.
    """
    last: Unavailable | None = None
    while True:
        rest = deadline - time.monotonic()
        if rest <= 0.0:
            raise last or Unavailable(f"the server {caller.label} did not answer in time", target=caller.label)
        try:
            yield Unary(_HEALTH, b"", rest, None)
            return
        except Failed as failed:
            if not failed.transport:
                if failed.error.code in ("DEADLINE_EXCEEDED", "CANCELLED"):
                    continue
                return
            last = failed.error if isinstance(failed.error, Unavailable) else last
        yield Sleep(min(_STEP_S, max(0.0, deadline - time.monotonic())))
