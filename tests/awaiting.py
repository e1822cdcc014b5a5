"""The async SDK with the sync one's manners, so that one test is for both."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, Self

from vecdb.client.async_collection import AsyncCollection
from vecdb.client.async_database import AsyncDatabase
from vecdb.client.steps import END


async def awaited(what: Any) -> Any:
    return await what


class Awaiting:
    """An event loop in a thread; ``wrap`` makes objects whose methods wait for their answers."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="awaiting", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, Any], timeout: float = 60.0) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def wrap(self, value: Any) -> Any:
        return Waited(self, value) if isinstance(value, AsyncDatabase | AsyncCollection) else value

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """What a method gives: an answer waited for, or an iterator that waits at each step."""

        async def start() -> Any:
            made = function(*args, **kwargs)
            return await made if asyncio.iscoroutine(made) else made

        made = self.run(start())
        return self._items(made) if isinstance(made, AsyncIterator) else self.wrap(made)

    def _items(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        while (item := self.run(awaited(anext(items, END)))) is not END:
            yield item


class Waited:
    """An async object whose methods are called without await."""

    def __init__(self, loop: Awaiting, inner: Any) -> None:
        self._loop = loop
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        if name in ("dim", "metric"):
            return getattr(self._loop.call(self._inner.schema), name)
        if name == "schema":
            return self._loop.call(self._inner.schema)
        found = getattr(self._inner, name)
        return (lambda *args, **kwargs: self._loop.call(found, *args, **kwargs)) if callable(found) else found

    def __len__(self) -> int:
        return int(self.count())

    def __bool__(self) -> bool:
        return True

    def __contains__(self, name: object) -> bool:
        return name in self.list_collections()

    def __getitem__(self, name: str) -> Any:
        return self.collection(name)

    def __repr__(self) -> str:
        return repr(self._inner)
