"""A node with front processes: which of them a connection leads to, and what is left of them."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil

from bench.server.processes import family
from tests.server.nodes import OPTIONS, Node, until
from vecdb.v1 import admin_pb2
from vecdb.wire import status

COUNT = 2
WITH: dict[str, object] = {"server__processes": COUNT, "log__slow_query_ms": 0}


def pids(standing: Node) -> list[int]:
    """Of the fronts, without the node's own."""
    return family(standing.child.pid)[1:]


def connections(pid: int, port: int) -> int:
    """Clients of one front; what runs no more has none."""
    try:
        found = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return 0
    return sum(one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED for one in found)


def alive(pid: int) -> bool:
    """Whether it runs: who ended and was not waited for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def each(standing: Node, **options: Any) -> Iterator[dict[int, grpc.Channel]]:
    """A channel to each front: opened until the kernel has spread them so."""
    found: dict[int, grpc.Channel] = {}
    opened: list[grpc.Channel] = []
    try:
        for number in range(140):
            time.sleep(0.5 if number > 20 else 0.0)  # a front that was started just now may not listen yet
            before = {pid: connections(pid, standing.port) for pid in pids(standing)}
            opened.append(channel := grpc.insecure_channel(standing.target, OPTIONS))
            ask(channel, "Admin/GetServer", admin_pb2.GetServerRequest(), **options)
            grown = [pid for pid, count in before.items() if connections(pid, standing.port) > count]
            if len(grown) == 1:
                found.setdefault(grown[0], channel)
            if len(found) == COUNT:
                break
        assert len(found) == COUNT, found
        yield found
    finally:
        for one in opened:
            one.close()


def ask(channel: grpc.Channel, method: str, message: Any, **options: Any) -> bytes:
    options.setdefault("timeout", 60)
    reply: bytes = channel.unary_unary(f"/vecdb.v1.{method}")(message.SerializeToString(), **options)
    return reply


def refused(call: Callable[[], Any]) -> tuple[grpc.RpcError, Exception]:
    """What a call raises, as gRPC's error and as ours."""
    try:
        call()
    except grpc.RpcError as error:
        details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
        return error, status.from_status(error.code().value[0], error.details() or "", details)
    raise AssertionError("it was not refused")


def gone(fronts: list[int], seconds: float = 60.0) -> bool:
    return until(lambda: not any(map(alive, fronts)), seconds)


def left_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))
