"""Three nodes of a kind on loopback, each in a process and a folder of its own, and who of them leads."""

import json
import random
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from bench.server.processes import Driver
from vecdb.rpc.peer_certificates import issue

NODES = 3
CLUSTER = "bench"
LEADER_S = 30.0
ANSWER_S = 180.0


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, each another one.

    Below those that the system gives to outgoing connections: while a node is down, one of these might take its port.
    """
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < count:
            port = random.randrange(15_000, 32_000)
            with suppress(OSError):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                found.append(port)
    return found


class Trio:
    """``command``: of node i among addresses, in a folder."""

    def __init__(self, name: str, place: Path, command: Callable[[int, Sequence[str], Path], list[str]]) -> None:
        addresses = [f"127.0.0.1:{port}" for port in free_ports(NODES)]
        self.nodes = [Driver(place, f"{name}{number}", command(number, addresses, place / f"{name}{number}"))
                      for number in range(NODES)]  # fmt: skip

    def ask(self, node: Driver, **command: Any) -> dict[str, Any]:
        node.tell(command)
        return node.answer(ANSWER_S)

    def leader(self) -> Driver:
        """The node that leads and has heard the others."""
        end = time.monotonic() + LEADER_S
        while time.monotonic() < end:
            for node in self.nodes:
                status = self.ask(node, do="status")
                if status["leads"] and status["ready"]:
                    return node
            time.sleep(0.05)
        raise SystemExit(f"nobody leads after {LEADER_S:.0f} s:\n{self.nodes[0].child.last_words()}")

    def load(self, size: int, window: int, seconds: float) -> dict[str, Any]:
        """Drive the leader; CPU seconds are of all three."""
        leader = self.leader()
        before = sum(node.child.cpu_s() for node in self.nodes)
        result = self.ask(leader, do="load", size=size, window=window, seconds=seconds)
        result["cpu_all_s"] = round(sum(node.child.cpu_s() for node in self.nodes) - before, 2)
        return result

    def idle(self, groups: int, seconds: float) -> dict[str, Any]:
        """What a node takes of a core for so many groups that do nothing, once all have leaders."""
        for node in self.nodes:
            self.ask(node, do="groups", count=groups)
        while any(self.ask(node, do="idle", seconds=0.5)["leaderless"] for node in self.nodes):
            continue
        for node in self.nodes:
            node.tell({"do": "idle", "seconds": seconds})
        found = [node.answer(ANSWER_S) for node in self.nodes]
        shares = [one["core_share"] for one in found]
        return {"groups": groups, "core_percent": round(100 * sum(shares) / len(shares), 1),
                "core_percent_most": round(100 * max(shares), 1), "led_most": max(one["led"] for one in found),
                "term_most": max(one["term_most"] for one in found)}  # fmt: skip

    def end(self) -> None:
        for node in self.nodes:
            node.end()


def stock(place: Path) -> Trio:
    def command(number: int, addresses: Sequence[str], folder: Path) -> list[str]:
        others = ",".join(one for at, one in enumerate(addresses) if at != number)
        return [sys.executable, "-m", "bench.replication.stock", addresses[number], others, str(folder)]

    return Trio("stock", place, command)


def ours(place: Path) -> Trio:
    """With certificates made for it, for mutual TLS."""
    certificates = place / "certificates"
    issue(certificates, CLUSTER, [f"n{number}" for number in range(NODES)])

    def command(number: int, addresses: Sequence[str], folder: Path) -> list[str]:
        nodes = {f"n{at}": address for at, address in enumerate(addresses)}
        return [sys.executable, "-m", "bench.replication.ours", f"n{number}", json.dumps(nodes), str(folder),
                str(certificates)]  # fmt: skip

    return Trio("ours", place, command)
