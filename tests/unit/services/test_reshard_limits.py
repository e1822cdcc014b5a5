"""How much a split copies in a second: as the job says, or the cluster, and what is told where that is too little."""

import asyncio
from dataclasses import replace
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import pytest

from tests.unit.services.test_reshard import JsonCommands, Running, World
from vecdb.core.calls import Call
from vecdb.core.cluster import HASH_SPACE
from vecdb.ports.copies import NEVER, CopyOrder, CopyStatus
from vecdb.services.operations.reshard import Reshard

BEHIND = f"writes come at 2,000 bytes/s, the limit is 1,000: {NEVER}"


class Slow:
    """Copiers of a node that are behind while they are limited."""

    def __init__(self) -> None:
        self.orders: list[CopyOrder] = []
        self.lag = 9_999

    async def start(self, order: CopyOrder, call: Call) -> CopyStatus:
        self.orders.append(order)
        return CopyStatus(order.job, order.fence, order.source, "following", copied_to=9_999,
                          applied=9_999 + self.lag, error=BEHIND if order.bytes_per_s else "")


@pytest.mark.parametrize(("args", "advice"), [
    ({}, "raise copy_bytes_s (vecdb cluster set), or cancel it"),
    ({"bytes_per_s": 1_000}, "cancel it, and begin another with a higher bytes_per_s")])
def test_a_split_says_that_its_limit_is_too_low_and_what_to_do(tmp_path: Path, args: dict[str, Any],
                                                               advice: str) -> None:
    async def run() -> None:
        world, slow = World(tmp_path, Random(1), [(0, HASH_SPACE)]), Slow()
        operation: Any = Reshard("split", lambda node: slow, JsonCommands())  # type: ignore[arg-type,return-value]
        job = Running("split", "1", args)

        async def limited(setting: dict[str, float], limit: int, error: str) -> None:
            world.control = replace(world.control, settings=MappingProxyType(setting))
            step = await operation.step(job, world)
            job.note(step)
            assert (step.phase, step.error, slow.orders[-1].bytes_per_s) == ("copy", error, limit)

        try:
            while job.phase != "copy":
                job.note(await operation.step(job, world))
            for setting in (1_000.0, 500.0):
                await limited({"copy_bytes_s": setting}, args.get("bytes_per_s", int(setting)), f"{BEHIND}; {advice}")
            if not args:
                await limited({}, 0, "")
            slow.lag = 0
            step = await operation.step(job, world)
            assert (step.phase, step.error) == ("seal", ""), "it has caught up"
            job.note(step)
            world.control = replace(world.control, settings=MappingProxyType({"copy_bytes_s": 1.0}))
            await operation.step(job, world)
            assert slow.orders[-1].bytes_per_s == 0, "writes wait for what is left"
        finally:
            await world.close()

    asyncio.run(run())
