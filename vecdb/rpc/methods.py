"""What a method of a service is to the edge, and what a call is to a servicer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from vecdb.core.access import Principal, Role
from vecdb.core.calls import Call
from vecdb.core.errors import PermissionDenied, VecdbError
from vecdb.ports.observer import Observer
from vecdb.rpc.templates import Templates

T = TypeVar("T")

HEAVY_BYTES: Final = 32 << 10
"""From this size on a message is taken apart in a thread: it would hold the loop for a millisecond or more."""
SMALL_BYTES: Final = 256 << 10
"""Largest message of a method that carries no records."""


@dataclass(slots=True, eq=False)
class Context:
    """One call, for its servicer; ``credentials``: its metadata and the name in its certificate."""

    call: Call
    principal: Principal
    peer: str
    workers: Executor
    credentials: tuple[Any, str] = ((), "")
    size: int = 0
    """Bytes of the message.  (Asking the message for it writes it out whole.)"""
    raw: bytes = b""
    """The message, where its like may be answered by a template."""

    async def apart(self, size: int, work: Callable[..., T], *args: Any) -> T:
        """``work(*args)``: here if ``size`` bytes are few, else in a thread."""
        if size < HEAVY_BYTES:
            return work(*args)
        return await asyncio.get_running_loop().run_in_executor(self.workers, work, *args)

    @contextmanager
    def counted(self, observer: Observer, name: str, collection: str, size: int) -> Iterator[None]:
        """Observe what the ``with`` holds as one call of the method ``name``."""
        began = observer.call_began(name)
        code = "OK"
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            code = "CANCELLED"
            raise
        except Exception as error:
            code = error.code if isinstance(error, VecdbError) else "INTERNAL"
            raise
        finally:
            observer.call_ended(name, began, collection, code, size, 0)


Handle = Callable[[Any, Context], Awaitable[Message]]
Stream = Callable[[Any, Context], AsyncIterator[Message]]


@dataclass(frozen=True, slots=True)
class Method:
    """``name`` is ``Service/Method``.  ``collection`` reads the name out of a message (None: it concerns no one).

    Exactly one of ``unary``, ``server_stream`` (one message in) and ``bidi`` (messages in, as parsed) is given.
    ``most_bytes`` of a message: a message is taken apart on the event loop, and many small parts take their time.
    ``templates`` of a unary method answer messages that differ little from others (:mod:`vecdb.rpc.templates`).
    """

    name: str
    request: type[Message]
    role: Role
    collection: Callable[[Any], str] | None = None
    audited: bool = False
    most_bytes: int = SMALL_BYTES
    unary: Handle | None = None
    server_stream: Stream | None = None
    bidi: Stream | None = None
    templates: Templates | None = None

    def may(self, principal: Principal) -> None:
        """Before the message is read: raise PermissionDenied for a caller who has the role on nothing at all."""
        if not any(grant.role >= self.role for grant in principal.grants):
            raise PermissionDenied(f"{principal.label} lacks the role {self.role.word}", needs=self.role.word,
                                   collection=None, key=principal.id)

    def allow(self, message: Any, principal: Principal) -> str:
        """Raise PermissionDenied, or return the collection's name ("": none)."""
        name = self.collection(message) if self.collection is not None else ""
        if self.role is not Role.READ or self.collection is not None:
            principal.require(self.role, name if self.collection is not None else None)
        return name
