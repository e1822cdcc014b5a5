"""Both networks carry, cut in one direction alone, delay and lose."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.networks import CUT, Network, Rule, Wires, network
from tests.faults import lacking

SERVER = """
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
while True:
    near, _ = listener.accept()
    try:
        while data := near.recv(1 << 16):
            near.sendall(data)
    except OSError:
        pass  # reset
    near.close()
"""
CLIENT = """
import socket, sys, time
for line in sys.stdin:
    seconds, size = line.split()
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), float(seconds)) as far:
            far.settimeout(float(seconds))
            sent = bytes(range(256)) * (int(size) // 256)
            far.sendall(sent)
            got = b""
            while len(got) < len(sent):
                more = far.recv(1 << 16)
                if not more:
                    raise OSError("ended")
                got += more
            print("same" if got == sent else "different", flush=True)
    except OSError as error:
        print("none", error, flush=True)
"""


class Pair:
    """A server ``b`` that says what it hears, and a client ``a``."""

    def __init__(self, net: Network, place: Path) -> None:
        self.net = net
        address, port = net.address("b"), str(net.peer_port("b"))
        self._place = place
        self.server = net.start("b", [sys.executable, "-c", SERVER, address, port], place / "b.log", {},
                                stdout=subprocess.PIPE)
        assert self.server.stdout is not None
        assert self.server.stdout.readline() == "ready\n"
        address, port = net.peer("b").split(":")
        self.client: Any = net.start("a", [sys.executable, "-c", CLIENT, address, port], place / "a.log", {},
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, seconds: float = 20, size: int = 256 << 10) -> str:
        self.client.stdin.write(f"{seconds} {size}\n")
        self.client.stdin.flush()
        return str(self.client.stdout.readline()).split()[0]

    def close(self) -> None:
        for process in (self.client, self.server):
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def wires() -> None:
    """The device is the kernel's to have; who has it and may not use it lacks rights."""
    if why := Wires.missing():
        told = f"needs network namespaces and /dev/net/tun: {why}"
        lacking(told) if Path("/dev/net/tun").exists() else pytest.skip(told)


@pytest.fixture(params=["packets", "proxies"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    if request.param == "packets":
        wires()
    with network(request.param, 1) as net:
        made = Pair(net, tmp_path)
        try:
            yield made
        finally:
            made.close()


def test_bytes_arrive_as_they_were_sent(pair: Pair) -> None:
    assert pair.ask() == "same"
    assert pair.ask(size=4 << 20) == "same"


@pytest.mark.parametrize("way", [("a", "b"), ("b", "a")])
def test_a_cut_of_either_direction_stops_an_exchange_and_heals(pair: Pair, way: tuple[str, str]) -> None:
    pair.net.rule(*way, CUT)
    assert pair.ask(0.7) == "none"
    pair.net.heal()
    assert pair.ask() == "same"
    assert pair.net.counters["packets_cut"] + pair.net.counters["waits_of_connections_cut"] > 0


def test_delays_add_up(pair: Pair) -> None:
    pair.net.rule("a", "b", Rule(delay_s=0.1))
    pair.net.rule("b", "a", Rule(delay_s=0.1, jitter_s=0.05))
    begun = time.monotonic()
    assert pair.ask(size=256) == "same"
    assert time.monotonic() - begun >= 0.2, "cannot be faster than what was added"


def test_loss_hurts_and_does_not_change_a_byte(pair: Pair) -> None:
    pair.net.rule("a", "b", Rule(loss=0.1, again=0.1))
    pair.net.rule("b", "a", Rule(loss=0.1, again=0.1, jitter_s=0.01))
    answers = {pair.ask(size=1 << 20) for _ in range(4)}
    assert answers <= {"same", "none"}
    assert pair.net.counters["packets_lost"] + pair.net.counters["connections_dropped"] > 0
    pair.net.heal()
    assert pair.ask() == "same"


def test_a_process_without_power_says_no_goodbye(tmp_path: Path) -> None:
    """Its peer's connection stays open, and a new process takes the address."""
    wires()
    with network("packets") as net:
        pair = Pair(net, tmp_path)
        assert pair.ask() == "same"
        net.silence("b")
        pair.server.kill()
        pair.server.wait()
        assert pair.ask(0.5) == "none"
        again = Pair(net, tmp_path)
        assert again.ask() == "same"
        again.close()
        pair.close()
