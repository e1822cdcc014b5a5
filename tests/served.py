"""``vecdb.connect`` to a directory by way of a real node: started in a thread, reached over gRPC, stopped by ``close``.

The tests of the embedded engine run on it unchanged.
"""

import asyncio
import threading
from pathlib import Path
from typing import Any

import vecdb
from tests.awaiting import Awaiting, awaited
from vecdb.client.async_database import AsyncDatabase
from vecdb.config import EngineSettings, ServerSettings, Settings, TelemetrySettings
from vecdb.serving.compose import start

_connect = vecdb.connect


class Node:
    """A node on a directory, in a thread of its own."""

    def __init__(self, path: Path, *, http_port: int = -1, **engine: Any) -> None:
        settings = Settings(data_dir=Path(path), engine=EngineSettings(**engine),
                            server=ServerSettings(grpc_port=0, http_port=http_port, warm_up=False, drain_s=5.0),
                            telemetry=TelemetrySettings(recall_samples_per_minute=0.0))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="served", daemon=True)
        self._thread.start()
        try:
            self._running = self._run(start(settings))
        except BaseException:
            self._end()
            raise
        self.addresses: dict[str, Any] = self._running.addresses
        self.url = f"grpc://127.0.0.1:{self.addresses['grpc_port']}"

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def stop(self) -> None:
        self._run(self._running.close(5.0))
        self._end()


class _Open:
    """A database that takes its node, and its event loop, with it when it closes."""

    def __init__(self, database: Any, close: Any) -> None:
        self._database = database
        self._ends = close

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._ends()


def over_grpc(path: Any, **engine: Any) -> Any:
    """As ``vecdb.connect(path, **engine)``, from across a network."""
    node = Node(path, **engine)
    database = _connect(node.url)

    def close() -> None:
        database.close()
        node.stop()

    return _Open(database, close)


def over_aio(path: Any, **engine: Any) -> Any:
    """The same by ``connect_async``."""
    node = Node(path, **engine)
    loop = Awaiting().__enter__()
    database: AsyncDatabase = loop.run(awaited(vecdb.connect_async(node.url)))

    def close() -> None:
        loop.run(database.close())
        loop.__exit__()
        node.stop()

    return _Open(loop.wrap(database), close)
