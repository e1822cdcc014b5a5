"""Work written once and run in two ways: generators that yield what they wait for, and two loops that drive them.

A step function checks arguments, decides and loops; where it would call out it yields an :class:`Op` and gets the
answer back (or the error, raised at the yield).  :func:`drive` performs each op by calling, :func:`adrive` by
awaiting, so the sync and the async SDK share every line but those two.
"""

from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any, Final, Protocol, TypeAlias, TypeVar

T = TypeVar("T")


class Op(Protocol):
    """One thing to wait for; ``target`` is what it is performed on."""

    def run(self, target: Any) -> Any: ...

    async def arun(self, target: Any) -> Any: ...


Steps: TypeAlias = Generator[Op, Any, T]


def drive(steps: Steps[T], target: Any) -> T:
    """Run to the end in this thread."""
    try:
        op = next(steps)
        while True:
            try:
                answer = op.run(target)
            except BaseException as error:
                op = steps.throw(error)
            else:
                op = steps.send(answer)
    except StopIteration as done:
        value: T = done.value
        return value


async def adrive(steps: Steps[T], target: Any) -> T:
    """Run to the end in this task."""
    try:
        op = next(steps)
        while True:
            try:
                answer = await op.arun(target)
            except BaseException as error:
                op = steps.throw(error)
            else:
                op = steps.send(answer)
    except StopIteration as done:
        value: T = done.value
        return value


END: Final = object()
"""What :class:`Next` answers when there is no more."""


class Next:
    """The next item of an iterator, or :data:`END`; with ``adrive`` it may be an asynchronous one."""

    __slots__ = ("_items",)

    def __init__(self, items: Iterator[Any] | AsyncIterator[Any]) -> None:
        self._items = items

    def run(self, target: Any) -> Any:
        assert isinstance(self._items, Iterator)
        return next(self._items, END)

    async def arun(self, target: Any) -> Any:
        if isinstance(self._items, AsyncIterator):
            return await anext(self._items, END)
        return next(self._items, END)


__all__ = ["END", "Next", "Op", "Steps", "adrive", "drive"]
