"""Stacks of gRPC in Python beside each other, each answering with the same bytes: ``python -m bench.transport``.

Servers: grpc.aio on uvloop, on asyncio's own loop, with handlers in threads, and the synchronous server.  Clients: the
synchronous one in threads, grpc.aio in tasks, one stream; and some channel arguments that promise latency.  It is what
the choice of the server's stack rests on (:mod:`vecdb.rpc`).
"""

import argparse
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from bench.server.floor import KINDS
from bench.server.points import Point, Setting
from bench.server.processes import Child, Driver, start_floor
from bench.server.report import console

CLIENTS: dict[str, dict[str, Any]] = {
    "raw-sync": {"how": "raw-sync"},
    "raw-aio": {"how": "raw-aio"},
    "raw-aio-asyncio": {"how": "raw-aio", "loop": "asyncio"},
    "raw-aio-4-channels": {"how": "raw-aio", "channels": 4},
    "raw-aio-latency": {"how": "raw-aio", "options": [("grpc.optimization_target", "latency")]},
    "stream": {"how": "stream"},
}


@dataclass(slots=True)
class Stack:
    """A server kind with a client kind, at one number of calls in flight."""

    kind: str
    client: str
    point: Point = field(default_factory=lambda: Point("floor", "", 1))


def visit(stack: Stack, server: Child, target: str, driver: Driver, setting: Setting) -> None:
    before = server.cpu_s()
    chosen = CLIENTS[stack.client]
    driver.tell({**setting.command(Point("floor", chosen["how"], stack.point.inflight), target, stack.point.inflight),
                 **chosen})  # fmt: skip
    answer = driver.answer(setting.seconds + 120)
    calls = answer["calls"] + answer["warm"]
    stack.point.take(np.array(answer["calls_ms"]), answer["calls"] / answer["seconds"],
                     (server.cpu_s() - before) / calls * 1e6, answer["cpu_s"] / calls * 1e6)  # fmt: skip


def table(stacks: list[Stack]) -> None:
    grid = Table(title="one query a call, answers of the same bytes; medians")
    for heading in ("server", "client", "in flight"):
        grid.add_column(heading)
    for heading in ("calls/s", "p50 ms", "p99 ms", "server us", "client us"):
        grid.add_column(heading, justify="right")
    for stack in stacks:
        one = stack.point
        grid.add_row(stack.kind, stack.client, str(one.inflight), f"{one.median('qps'):,.0f}",
                     *(f"{one.median(name):.3f}" for name in ("p50_ms", "p99_ms")),
                     *(f"{one.median(name):.0f}" for name in ("server_us", "client_us")))  # fmt: skip
    console().print(grid)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.transport", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--clients", type=lambda text: text.split(","), default=list(CLIENTS))
    parser.add_argument("--inflight", type=lambda text: [int(one) for one in text.split(",")], default=[1, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    # Servers one right after the other, so that whatever else the machine does hits all alike.
    stacks = [Stack(kind, client, Point("floor", client, inflight)) for client in options.clients
              for inflight in options.inflight for kind in options.kinds]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="vecdb-transport-") as folder:
        place = Path(folder)
        queries = place / "queries.npy"
        np.save(queries, np.random.default_rng(1).standard_normal((500, 128)).astype(np.float32))
        servers = {kind: start_floor(place, ["--kind", kind], kind) for kind in options.kinds}
        driver = Driver(place, "client")
        setting = Setting(queries, 10, 0, options.seconds)
        try:
            for _ in range(options.rounds):
                for stack in stacks:
                    server, port = servers[stack.kind]
                    visit(stack, server, f"127.0.0.1:{port}", driver, setting)
        finally:
            driver.end()
            for server, _ in servers.values():
                server.end()
    table(stacks)
    if options.out:
        rows = [{"kind": stack.kind, "client": stack.client, **stack.point.row()} for stack in stacks]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
