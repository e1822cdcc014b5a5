"""The first connection: wait for a server that answers, and say why there is none."""

import time
from typing import Final

from vecdb.client.remote.calling import Caller
from vecdb.client.remote.failures import hopeless, refused
from vecdb.client.remote.io import Rpc, Sleep, Unary
from vecdb.client.remote.retry import Failed
from vecdb.client.steps import Steps
from vecdb.core.errors import Unavailable, VecdbError

_HEALTH: Final = Rpc("")
_HEALTH.path = "/grpc.health.v1.Health/Check"
_STEP_S: Final = 0.2
ONE_OF_SEVERAL_S: Final = 1.0
"""How long one of several addresses is waited for: the others may be there."""
REFUSED_S: Final = 2.0
"""How long addresses that all refuse are tried: a server between two lives is waited for, a wrong port is told soon."""


def _round(caller: Caller, deadline: float, addresses: int) -> Steps[bool]:
    """Ask every address once, none for long; whether one of them answered."""
    answered = False
    for _ in range(addresses):
        rest = deadline - time.monotonic()
        if rest <= 0.0:
            break
        try:
            yield Unary(_HEALTH, b"", min(rest, ONE_OF_SEVERAL_S), None)
            answered = True
        except Failed as failed:
            answered = answered or not (failed.transport or failed.error.code in ("DEADLINE_EXCEEDED", "CANCELLED"))
    return answered


def connect_steps(caller: Caller, deadline: float, addresses: int = 1) -> Steps[None]:
    """Ask for the server's health until anything answers: a refusal of the call is an answer too.

    The request is empty (health of the whole server) and the reply is not looked at: a server that is starting
    says so itself at the first call.  A host that does not answer is waited for until the deadline; where every one
    of the ``addresses`` refuses the connection, that is told after ``REFUSED_S``.  Several addresses are asked in turn,
    all of them once: those that do not answer are known, then, and calls pass them over.
    """
    if addresses > 1 and (yield from _round(caller, deadline, addresses)):
        return
    last: VecdbError | None = None
    soon = time.monotonic() + REFUSED_S
    vain: set[object] | None = set()
    while True:
        rest = deadline - time.monotonic()
        if rest <= 0.0 or (vain is not None and len(vain) >= addresses and time.monotonic() >= soon):
            raise last or Unavailable(f"the server {caller.label} did not answer in time", target=caller.label)
        try:
            yield Unary(_HEALTH, b"", rest if addresses == 1 else min(rest, ONE_OF_SEVERAL_S), None)
            return
        except Failed as failed:
            error = failed.error
            if not failed.transport:
                if error.code not in ("DEADLINE_EXCEEDED", "CANCELLED"):
                    return
                vain = None
                continue
            if vain is not None:
                vain = vain | {error.fields.get("target")} if hopeless(error) else None
            if last is None or not refused(error) or refused(last):
                last = error  # a name has several addresses, and one where nobody listens says less than another
        yield Sleep(min(_STEP_S, max(0.0, deadline - time.monotonic())))
