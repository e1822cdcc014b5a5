"""Where who leads the control group is frozen: who asks is answered by the next one, and no attempt ends the call."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from vecdb.core.calls import Call, Stopped
from vecdb.core.cluster import JobInfo
from vecdb.core.errors import Unavailable
from vecdb.core.operations import ClusterInfo
from vecdb.runtime.clock import SystemClock
from vecdb.services.administration import Administration
from vecdb.services.control_calls import ControlCalls
from vecdb.services.leaders import Leaders

FAR_S = 120.0
JOB = JobInfo(1, "split", "4", {}, "running")
INFO = ClusterInfo("tests", "c2", "c2", 1)


class Frozen:
    """A node's calls, as another one makes them: given up, the call is ended, so that the other node lets go of it."""

    def __init__(self, asked: list[str]) -> None:
        self.asked = asked

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        async def ask(*args: Any, **named: Any) -> Any:
            self.asked.append(method)
            call = next(one for one in args if isinstance(one, Call))
            try:
                await asyncio.sleep(FAR_S)
            except asyncio.CancelledError:
                call.end(Stopped.CANCELLED)
                raise
            raise AssertionError("nobody gave it up")

        return ask


class Leads:
    """The same of one that answers."""

    async def cluster(self, call: Call) -> ClusterInfo:
        call.check()
        return INFO

    async def cluster_jobs(self, call: Call, *, id: int = 0, ended: bool = False) -> list[JobInfo]:
        call.check()
        return [JOB]

    async def set_cluster_setting(self, name: str, value: Any, call: Call) -> None:
        call.check()

    async def propose(self, group: int, command: bytes, call: Call) -> Any:
        call.check()
        return SimpleNamespace(log_index=7)

    async def read_index(self, group: int, call: Call) -> int:
        call.check()
        return 7


def leaders() -> Leaders:
    """Of a node that remembers c1 as the leader; the others know by now that c2 is."""
    async def ask_leader(group: int, node: str) -> str | None:
        return "c2"

    one = Leaders("n1", lambda group: None, ask_leader, SystemClock(), Random(7))
    one._remember(0, "c1")
    return one


@pytest.mark.parametrize(("ask", "is_told"), [
    (lambda one, call: one.cluster(call), INFO), (lambda one, call: one.cluster_jobs(call, id=1), [JOB]),
    (lambda one, call: one.set_cluster_setting("repair_after_s", 60.0, call), None)], ids=["info", "job", "set"])
def test_operators_are_answered_by_who_leads_now(ask: Callable[[Administration, Call], Awaitable[Any]], is_told: Any
                                                 ) -> None:
    asked: list[str] = []

    def other(node: str) -> Any:
        return Frozen(asked) if node == "c1" else Leads()

    one = Administration("n1", lambda: ["c1", "c2"], other("c1"), other, leaders(), lambda: None, SystemClock())

    async def run() -> None:
        call = Call(SystemClock().monotonic() + FAR_S / 2)
        assert await ask(one, call) == is_told
        call.check()

    asyncio.run(run())
    assert len(asked) == 1, "the frozen one, and it alone"


@pytest.mark.parametrize("ask", [lambda one: one.catch_up(), lambda one: one.change(b"command")],
                         ids=["catch_up", "change"])
def test_so_are_keys(ask: Callable[[ControlCalls], Awaitable[None]]) -> None:
    asked: list[str] = []
    applied: list[int] = []

    class Here:
        async def wait_applied(self, log_index: int, deadline: float | None) -> None:
            applied.append(log_index)

    here: list[Any] = [Here()]
    calls = ControlCalls(leaders(), lambda: ["c1", "c2"], lambda node: Frozen(asked) if node == "c1" else Leads(),
                         lambda: here[0], SystemClock())  # type: ignore[arg-type,return-value]
    asyncio.run(ask(calls))  # type: ignore[arg-type]
    assert (len(asked), applied) == (1, [7])
    here[0] = None
    with pytest.raises(Unavailable):
        asyncio.run(ask(calls))  # type: ignore[arg-type]
