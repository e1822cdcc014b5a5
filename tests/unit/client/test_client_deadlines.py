"""``timeout=``: the watcher ends calls that are late, and the facade hands each backend call what it belongs to."""

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.memory_backend import MemoryBackend
from vecdb.client.collection import Collection
from vecdb.client.database import Database
from vecdb.client.deadlines import MAX_TIMEOUT_S, Watcher, check_timeout
from vecdb.core.calls import Call, Stopped
from vecdb.core.errors import DeadlineExceeded, InvalidArgument


def _wait_until(ended: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 30
    while not ended():
        assert time.monotonic() < give_up, "never"
        time.sleep(0.002)


@pytest.mark.parametrize("wrong", [0, -1, True, "1", float("nan"), float("inf"), MAX_TIMEOUT_S * 2, [1]])
def test_wrong_timeouts_are_refused(wrong: Any) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_timeout(wrong)
    assert refused.value.fields["argument"] == "timeout"


def test_only_what_is_late_is_ended() -> None:
    watcher, now = Watcher(), time.monotonic()
    late, early, later = Call(), Call(), Call()
    watcher.watch(later, now + 1_000)
    forgotten = watcher.watch(early, now + 0.01)
    watcher.forget(forgotten)
    watcher.watch(late, now + 0.02)  # the thread sleeps for a thousand seconds and has to be woken
    _wait_until(lambda: bool(late.stop[0]))
    assert late.stop[0] == Stopped.DEADLINE
    assert early.stop[0] == later.stop[0] == Stopped.NO
    assert watcher.watched == 1


def test_ended_calls_do_not_pile_up() -> None:
    watcher, now = Watcher(), time.monotonic()
    for _ in range(5_000):
        watcher.forget(watcher.watch(Call(), now + 1_000))
    assert len(watcher._heap) < 200
    assert watcher.watched == 0


def test_many_threads_watch_at_once() -> None:
    watcher, now = Watcher(), time.monotonic()
    ended: list[Call] = []

    def use(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(200):
            call = Call()
            entry = watcher.watch(call, now + float(rng.uniform(0, 0.2)))
            if rng.random() < 0.5:
                watcher.forget(entry)
            else:
                ended.append(call)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _wait_until(lambda: all(call.stop[0] == Stopped.DEADLINE for call in ended))
    assert watcher.watched == 0


class Slow(MemoryBackend):
    """Every call of a record waits for its end, if it has one."""

    def query(self, name: str, request: Any, call: Call | None = None) -> Any:
        return self._late(call) or super().query(name, request, call)

    def fetch(self, name: str, ids: Any, *, include_metadata: bool = True, include_vectors: bool = True,
              call: Call | None = None) -> Any:
        return self._late(call) or super().fetch(name, ids, include_metadata=include_metadata,
                                                 include_vectors=include_vectors, call=call)

    def upsert(self, name: str, batch: Any, call: Call | None = None) -> Any:
        return self._late(call) or super().upsert(name, batch, call)

    def delete(self, name: str, command: Any, call: Call | None = None) -> Any:
        return self._late(call) or super().delete(name, command, call)

    def update_metadata(self, name: str, command: Any, call: Call | None = None) -> Any:
        return self._late(call) or super().update_metadata(name, command, call)

    def scan(self, name: str, request: Any, call: Call | None = None) -> Any:
        return self._late(call) or super().scan(name, request, call)

    def count(self, name: str, where: Any = None, call: Call | None = None) -> Any:
        return self._late(call) or super().count(name, where, call)

    def optimize(self, name: str, on_progress: Any = None, call: Call | None = None) -> Any:
        return self._late(call) or super().optimize(name, on_progress, call)

    def _late(self, call: Call | None) -> None:
        if call is not None:
            _wait_until(lambda: bool(call.stop[0]))
            call.check()


@pytest.mark.parametrize("late", [
    lambda docs: docs.query([1, 0], timeout=0.01), lambda docs: docs.query([[1, 0]], timeout=0.01, progress=print),
    lambda docs: docs.fetch([1], timeout=0.01), lambda docs: docs.upsert([1], [[1, 0]], timeout=0.01),
    lambda docs: docs.delete([1], timeout=0.01), lambda docs: docs.delete(filter="true", timeout=0.01),
    lambda docs: docs.update_metadata([1], {}, timeout=0.01),
    lambda docs: docs.update_metadata(filter="true", metadata={}, timeout=0.01),
    lambda docs: list(docs.scan(timeout=0.01)), lambda docs: list(docs.scan_batches(timeout=0.01)),
    lambda docs: docs.count(timeout=0.01), lambda docs: docs.optimize(timeout=0.01)])
def test_a_timeout_ends_the_call(late: Callable[[Collection], object]) -> None:
    docs = Database(Slow(), label="slow").create_collection("c", 2)
    docs.upsert([1], [[0, 1]], [{"a": 1}])
    with pytest.raises(DeadlineExceeded):
        late(docs)
    assert docs.get(1).metadata == {"a": 1}  # type: ignore[union-attr]
