"""What every face does at its door, in one form: refusals are counted, faults told, admin calls noted."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from vecdb.core.access import Principal
from vecdb.core.errors import Overloaded, PermissionDenied, Unauthenticated, VecdbError
from vecdb.ports.observer import Observer, Refusal


class Authenticate(Protocol):
    def check(self, metadata: Any, peer: str, certificate: str = "") -> Principal: ...


class Rates(Protocol):
    def take(self, principal: Principal, cost: float = 1.0) -> None: ...


class Budget(Protocol):
    def acquire(self, count: int) -> None: ...

    def release(self, count: int) -> None: ...


class Audit(Protocol):
    def record(self, *, principal: Principal, peer: str, method: str, collection: str, outcome: str, request_id: str,
               arguments: dict[str, Any]) -> None: ...


@dataclass(slots=True, eq=False)
class Inside:
    """Calls of all faces that have begun and not ended."""

    calls: int = 0


@dataclass(frozen=True, slots=True)
class Guards:
    """What stands at the door; ``on_fault(error, request_id, method)`` hears of faults of our own.

    ``certificates``: clients show one, and its name is asked for.  ``relayed``: calls come from our own front
    processes, which tell whose they are; only for a socket that nobody else can reach.
    """

    authenticator: Authenticate
    rates: Rates
    budget: Budget
    audit: Audit
    observer: Observer
    on_fault: Callable[[BaseException, str, str], None]
    concurrent_calls: int = 2_048
    deadline_s: float = 60.0
    deadline_max_s: float = 3_600.0
    certificates: bool = False
    relayed: bool = False
    inside: Inside = field(default_factory=Inside)


NOBODY: Final = Principal("", "nobody", ())
"""Whose call it is until that is known."""

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def good_request_id(given: str) -> bool:
    """Whether a caller's own request id is fit for logs and headers."""
    return _REQUEST_ID.fullmatch(given) is not None


def take(guards: Guards, principal: Principal) -> None:
    """One call of ``principal``, or Overloaded."""
    try:
        guards.rates.take(principal)
    except Overloaded:
        guards.observer.refused(Refusal.RATE)
        raise


def hold(guards: Guards, size: int) -> None:
    """``size`` bytes of the budget, to be released, or Overloaded."""
    try:
        guards.budget.acquire(size)
    except Overloaded:
        guards.observer.refused(Refusal.INFLIGHT_BYTES)
        raise


def tell(guards: Guards, error: BaseException, request_id: str, method: str) -> None:
    """Let those know of an error who count refusals and mend faults."""
    if isinstance(error, Unauthenticated):
        guards.observer.refused(Refusal.AUTH)
    elif isinstance(error, PermissionDenied):
        guards.observer.refused(Refusal.PERMISSION)
    elif not isinstance(error, VecdbError):
        guards.on_fault(error, request_id, method)


def note(guards: Guards, *, principal: Principal, peer: str, method: str, collection: str, outcome: str,
         request_id: str, arguments: dict[str, Any]) -> None:
    """One line of the audit log."""
    try:
        guards.audit.record(principal=principal, peer=peer, method=method, collection=collection, outcome=outcome,
                            request_id=request_id, arguments=arguments)
    except Exception as error:  # the call is done; what the log refuses must not undo it
        guards.on_fault(error, request_id, "audit")
