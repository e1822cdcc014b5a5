"""What frames between nodes cost: throughput, CPU, how late a heartbeat is behind bulk, what idle groups take.

    python -m bench.frames [--seconds 4] [--groups 64] [--plain] [--out build/frames.json]

Two processes over loopback, one loop each, with mutual TLS and then without.  CPU is of both processes together, for a
frame.  The idle cluster is three processes with ``--groups`` Raft groups and nothing to do; their state machines and
logs are in memory.  One core is what everything here shares with a busy machine: compare ratios within a run.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from vecdb.raft.driver import Driver
from vecdb.rpc.frames import GrpcFrames
from vecdb.rpc.peer_certificates import issue, open_peer_certificates
from vecdb.rpc.peer_channels import PeerChannels
from vecdb.rpc.peers_server import PeerServer, PeerServerOptions
from vecdb.runtime.clock import SystemClock
from vecdb.testing.disk import MemoryStore
from vecdb.testing.register import RegisterDisk, RegisterMachine

CLUSTER = "bench"
SIZES = ((100, 1), (51_000, 1), (1 << 20, 1), (1 << 20, 2), (3 << 20, 1), (66 << 20, 1))
AHEAD_BYTES = 16 << 20


class Peer:
    """One node's transport."""

    def __init__(self, node: str, addresses: dict[str, str], folder: str) -> None:
        tls = None
        if folder:
            files = SimpleNamespace(name=CLUSTER, cert_file=Path(folder, f"{node}.pem"),
                                    key_file=Path(folder, f"{node}.key"), ca_file=Path(folder, "ca.pem"))
            tls = open_peer_certificates(files, node, SystemClock())
        self.channels = PeerChannels(node, CLUSTER, addresses, tls)
        self.frames = GrpcFrames(self.channels, node, CLUSTER)
        credentials = None if tls is None else tls.grpc_credentials()
        self.server = PeerServer(PeerServerOptions(node, CLUSTER, addresses[node], set(addresses), credentials,
                                                   insecure=tls is None), [self.frames.servicer()])

    async def close(self) -> None:
        await self.frames.close()
        await self.channels.close()
        await self.server.stop()


async def serve(node: str, addresses: dict[str, str], folder: str) -> None:
    """The other end: counts what comes, answers a question of eight bytes, tells about itself when asked."""
    peer = Peer(node, addresses, folder)
    got = [0, 0]

    def received(sender: str, frame: bytes | memoryview) -> None:
        got[0] += 1
        got[1] += len(frame)
        if len(frame) == 8:
            peer.frames.send(sender, bytes(frame))
        elif len(frame) == 9:
            peer.frames.send(sender, json.dumps([*got, time.process_time()]).encode())

    peer.frames.listen(received)
    await peer.server.start()
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await peer.close()


class Near:
    """This end of a pair."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.told: asyncio.Queue[bytes] = asyncio.Queue()
        peer.frames.listen(lambda _, frame: self.told.put_nowait(bytes(frame)))

    async def ask(self, frame: bytes) -> bytes:
        self.peer.frames.send("n2", frame)
        return await asyncio.wait_for(self.told.get(), 30)

    async def state(self) -> tuple[int, int, float]:
        return tuple(json.loads(await self.ask(b"123456789")))  # type: ignore[return-value]

    async def throughput(self, size: int, lanes: int, seconds: float) -> dict[str, Any]:
        frame = os.urandom(size)
        before, cpu, began = await self.state(), time.process_time(), time.perf_counter()
        window = max(AHEAD_BYTES, 2 * size)
        while time.perf_counter() - began < seconds:
            for _ in range(64):
                if self.peer.frames.counters["waiting_bytes"] >= window:
                    break
                for lane in range(lanes):
                    self.peer.frames.send("n2", frame, bulk=lane == 1)
            await asyncio.sleep(0.0002)
        while self.peer.frames.counters["waiting_bytes"]:
            await asyncio.sleep(0.001)
        after, cpu, lasted = await self.state(), time.process_time() - cpu, time.perf_counter() - began
        count = after[0] - before[0] - 1
        return {"bytes": size, "streams": lanes, "MB/s": count * size / lasted / 1e6, "frames/s": count / lasted,
                "cpu_us": (cpu + after[2] - before[2]) / count * 1e6}

    async def answers(self, seconds: float, behind: int) -> dict[str, Any]:
        """Question and answer every 5 ms, with so many bytes of bulk waiting all the while."""
        frame = os.urandom(1 << 20)
        took: list[float] = []
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            for _ in range(behind >> 20):
                if self.peer.frames.counters["waiting_bytes"] < behind:
                    self.peer.frames.send("n2", frame, bulk=True)
            asked = time.perf_counter()
            await self.ask(b"12345678")
            took.append(time.perf_counter() - asked)
            await asyncio.sleep(0.005)
        took.sort()
        return {"behind_bytes": behind, "p50_ms": took[len(took) // 2] * 1e3,
                "p99_ms": took[len(took) * 99 // 100] * 1e3, "max_ms": took[-1] * 1e3}


async def idle(node: str, addresses: dict[str, str], folder: str, groups: int, seconds: float) -> None:
    """One node of an idle cluster; prints its share of a core."""
    peer = Peer(node, addresses, folder)
    driver = Driver(node, MemoryStore(), peer.frames, seed=os.getpid())
    voters = tuple(f"{name}/1" for name in addresses)
    replicas = [driver.add(group, RegisterMachine(RegisterDisk()), number=1, voters=voters)
                for group in range(1, groups + 1)]
    await peer.server.start()
    await asyncio.sleep(6)
    cpu, before = time.process_time(), peer.frames.counters
    await asyncio.sleep(seconds)
    used, after = time.process_time() - cpu, peer.frames.counters
    print(json.dumps({"node": node, "leads": sum(one.status().role == "leader" for one in replicas),
                      "core_%": used / seconds * 100,
                      **{f"{name}/s": (after[name] - before[name]) / seconds for name in
                         ("sent_messages", "sent_frames", "sent_bytes", "received_messages")}}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    driver.close()
    await peer.close()


def start(node: str, addresses: dict[str, str], folder: str, *more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-m", "bench.frames", "--node", node, "--addresses", json.dumps(addresses),
                             "--folder", folder, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def free_addresses(nodes: int) -> dict[str, str]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(nodes)]
    addresses = {f"n{at}": f"127.0.0.1:{one.getsockname()[1]}" for at, one in enumerate(held, 1)}
    for one in held:
        one.close()
    return addresses


async def pair(folder: str, seconds: float) -> dict[str, Any]:
    addresses = free_addresses(2)
    far = start("n2", addresses, folder)
    assert far.stdout is not None
    assert far.stdin is not None
    assert far.stdout.readline() == "ready\n"
    peer = Peer("n1", addresses, folder)
    near = Near(peer)
    await peer.server.start()
    await near.ask(b"12345678")
    flows = [await near.throughput(size, lanes, seconds) for size, lanes in SIZES]
    late = [await near.answers(seconds, behind) for behind in (0, 8 << 20)]
    await peer.close()
    far.stdin.close()
    far.wait(30)
    return {"flows": flows, "answers": late}


def rested(folder: str, groups: int, seconds: float) -> list[dict[str, Any]]:
    addresses = free_addresses(3)
    nodes = [start(name, addresses, folder, "--groups", str(groups), "--seconds", str(seconds)) for name in addresses]
    told = [json.loads(one.stdout.readline()) for one in nodes if one.stdout is not None]
    for one in nodes:
        assert one.stdin is not None
        one.stdin.close()
    for one in nodes:
        one.wait(30)
    return told


def show(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int)
                        else str(value) for value in row.values()))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.frames", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--groups", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="without TLS alone")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--node", help=argparse.SUPPRESS)
    parser.add_argument("--addresses", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.node:
        uvloop.run(idle(said.node, said.addresses, said.folder, said.groups, said.seconds) if said.groups
                   else serve(said.node, said.addresses, said.folder))
        return
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        issue(folder, CLUSTER, ["n1", "n2", "n3"])
        for name, used in (("plaintext", ""), ("mTLS", folder))[:1 if said.plain else 2]:
            result[name] = {**uvloop.run(pair(used, said.seconds)), "idle": rested(used, said.groups or 64, 10.0)}
            show(f"{name}: frames one way", result[name]["flows"])
            show(f"{name}: question and answer", result[name]["answers"])
            show(f"{name}: idle groups", result[name]["idle"])
    if said.out:
        said.out.parent.mkdir(parents=True, exist_ok=True)
        said.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
