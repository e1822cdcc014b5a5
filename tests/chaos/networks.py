"""Networks between processes that can be hurt: packets of tun devices, or bytes of TCP proxies.

:class:`Wires` gives each process a network namespace and carries the packets between them itself, so that cuts,
one-way cuts, loss, delay, reordering and duplicates are those of IP, and a node that loses its power says no goodbye.
It needs ``/dev/net/tun`` and a kernel that lets us have network namespaces; no ``ip``, ``tc`` or ``nft``.

:class:`Proxies` needs nothing: between two nodes each connection goes through a proxy that stalls, delays or drops it,
each direction by its own rule; clients reach the nodes directly.
"""

import array
import contextlib
import heapq
import os
import random
import select
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.chaos import within

PEER_PORT, CLIENT_PORT = 7702, 7700


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to what goes from one host to another.  ``loss``, ``again``: shares of packets lost and doubled."""

    cut: bool = False
    loss: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    again: float = 0.0

    def __str__(self) -> str:
        return "cut" if self.cut else f"loss {self.loss:.0%}, {1000 * self.delay_s:.0f}+{1000 * self.jitter_s:.0f} ms"


CUT = Rule(cut=True)
FINE = Rule()


class Network(Protocol):
    """Hosts are known by name; ``counters`` says what was done to their traffic."""

    kind: str
    counters: Counter[str]

    def address(self, host: str) -> str: ...

    def client_port(self, host: str) -> int: ...

    def peer(self, host: str) -> str:
        """``address:port`` by which others reach a host's peer port: what all nodes are told."""
        ...

    def peer_port(self, host: str) -> int:
        """Where a host's own peer port is."""
        ...

    def rule(self, source: str, target: str, rule: Rule) -> None: ...

    def heal(self) -> None: ...

    def start(self, host: str, command: list[str], log: Path, environment: dict[str, str], **popen: object,
              ) -> subprocess.Popen[str]: ...

    def silence(self, host: str) -> None:
        """From now on nothing leaves the process that runs there: its power is about to go."""
        ...

    def close(self) -> None: ...


def _popen(command: list[str], log: Path, environment: dict[str, str], pass_fds: tuple[int, ...] = (),
           **popen: object) -> subprocess.Popen[str]:
    with log.open("ab") as words:
        return subprocess.Popen(command, env={**os.environ, **environment}, stderr=words, text=True,
                                pass_fds=pass_fds, **{"stdin": subprocess.DEVNULL, "stdout": words, **popen})


class Wires:
    """Addresses 10.77.0.1 and on, in the order in which hosts are first named."""

    kind = "packets"

    def __init__(self, seed: int = 0) -> None:
        self.counters: Counter[str] = Counter()
        self._rng = random.Random(seed)
        self._hosts: dict[str, int] = {}
        self._devices: dict[int, int] = {}
        self._rules: dict[tuple[int, int], Rule] = {}
        self._late: list[tuple[float, int, int, bytes]] = []
        self._number = 0
        self._lock = threading.Lock()
        self._poll = select.epoll()
        self._wake, self._waker = os.pipe()
        self._poll.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(target=self._carry, name="wires", daemon=True)
        self._thread.start()

    @staticmethod
    def missing() -> str:
        """Why there can be none here; empty where there can."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            os.set_inheritable(theirs.fileno(), True)
            done = subprocess.run([sys.executable, within.__file__, "10.77.0.1", str(theirs.fileno())],
                                  pass_fds=(theirs.fileno(),), capture_output=True, text=True, timeout=60)
        return "" if done.returncode == 0 else done.stderr.strip() or f"ended with {done.returncode}"

    def _host(self, name: str) -> int:
        return self._hosts.setdefault(name, len(self._hosts) + 1)

    def address(self, host: str) -> str:
        return f"10.77.0.{self._host(host)}"

    def client_port(self, host: str) -> int:
        return CLIENT_PORT

    def peer(self, host: str) -> str:
        return f"{self.address(host)}:{PEER_PORT}"

    def peer_port(self, host: str) -> int:
        return PEER_PORT

    def rule(self, source: str, target: str, rule: Rule) -> None:
        with self._lock:
            self._rules[self._host(source), self._host(target)] = rule

    def heal(self) -> None:
        with self._lock:
            self._rules.clear()

    def start(self, host: str, command: list[str], log: Path, environment: dict[str, str], **popen: object,
              ) -> subprocess.Popen[str]:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                handle = theirs.fileno()
                # What is preloaded is for the command: ``within`` must not be seen at work.
                process = _popen([sys.executable, within.__file__, self.address(host), str(handle), "env",
                                  *(f"{name}={value}" for name, value in environment.items()), *command],
                                 log, {}, (handle,), **popen)
            ours.settimeout(60)
            size = array.array("i").itemsize
            _, more, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(size))
        if not more:
            raise OSError(f"{host} has no network: ended with {process.wait(30)}")
        device = array.array("i", more[0][2][:size])[0]
        os.set_blocking(device, False)
        with self._lock:
            self._drop(self._host(host))
            self._devices[self._host(host)] = device
            self._poll.register(device, select.EPOLLIN)
        return process

    def silence(self, host: str) -> None:
        with self._lock:
            self._drop(self._host(host))

    def _drop(self, host: int) -> None:
        device = self._devices.pop(host, None)
        if device is not None:
            self._poll.unregister(device)
            os.close(device)

    def _carry(self) -> None:
        while True:
            with self._lock:
                now = time.monotonic()
                while self._late and self._late[0][0] <= now:
                    _, _, target, packet = heapq.heappop(self._late)
                    self._deliver(target, packet)
                wait = max(0.0, self._late[0][0] - now) if self._late else 1.0
            found = self._poll.poll(min(wait, 1.0))
            with self._lock:
                owners = {device: host for host, device in self._devices.items()}
                for device, _ in found:
                    if device == self._wake:
                        return
                    if device in owners:
                        self._read(owners[device], device)

    def _read(self, source: int, device: int) -> None:
        for _ in range(64):
            try:
                packet = os.read(device, 1 << 16)
            except (BlockingIOError, OSError):
                return
            if len(packet) < 20 or packet[0] >> 4 != 4 or packet[16:19] != b"\x0a\x4d\x00":
                continue
            target = packet[19]
            rule = self._rules.get((source, target), FINE)
            if rule is FINE:
                self._deliver(target, packet)
            else:
                self._hurt(target, packet, rule)

    def _hurt(self, target: int, packet: bytes, rule: Rule) -> None:
        if rule.cut or self._rng.random() < rule.loss:
            self.counters["packets_cut" if rule.cut else "packets_lost"] += 1
            return
        for _ in range(1 + (self._rng.random() < rule.again)):
            if rule.delay_s or rule.jitter_s:
                self._number += 1
                self.counters["packets_delayed"] += 1
                due = time.monotonic() + rule.delay_s + self._rng.random() * rule.jitter_s
                heapq.heappush(self._late, (due, self._number, target, packet))
            else:
                self._deliver(target, packet)

    def _deliver(self, target: int, packet: bytes) -> None:
        device = self._devices.get(target)
        if device is not None:
            with contextlib.suppress(OSError):
                os.write(device, packet)
                self.counters["packets"] += 1

    def close(self) -> None:
        os.close(self._waker)
        self._thread.join(10)
        for host in list(self._devices):
            self._drop(host)
        self._poll.close()
        os.close(self._wake)


def free_port() -> int:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Proxies:
    """Everybody on 127.0.0.1; before each host is a proxy, at the one address that all are told.  Who comes in is known
    by the process whose socket it is (``/proc``); of one that was not started here the name is empty.
    """

    kind = "proxies"

    def __init__(self, seed: int = 0) -> None:
        self.counters: Counter[str] = Counter()
        self._rng = random.Random(seed)
        self._ports: dict[str, tuple[int, int]] = {}
        self._proxies: dict[str, _Proxy] = {}
        self._processes: dict[int, str] = {}
        self._rules: dict[tuple[str, str], Rule] = {}

    def _host(self, name: str) -> tuple[int, int]:
        if name not in self._ports:
            self._ports[name] = free_port(), free_port()
        return self._ports[name]

    def address(self, host: str) -> str:
        return "127.0.0.1"

    def client_port(self, host: str) -> int:
        return self._host(host)[0]

    def peer(self, host: str) -> str:
        if host not in self._proxies:
            self._proxies[host] = _Proxy(self, host, self.peer_port(host))
        return f"127.0.0.1:{self._proxies[host].port}"

    def peer_port(self, host: str) -> int:
        return self._host(host)[1]

    def whose(self, near: socket.socket) -> str:
        """The host at the other end of a connection."""
        sockets = _inodes(int(near.getpeername()[1]), int(near.getsockname()[1]))
        for process, host in list(self._processes.items()):
            with contextlib.suppress(OSError):
                for handle in os.scandir(f"/proc/{process}/fd"):
                    with contextlib.suppress(OSError):
                        if os.readlink(handle.path) in sockets:
                            return host
        return ""

    def rule(self, source: str, target: str, rule: Rule) -> None:
        self._rules[source, target] = rule

    def heal(self) -> None:
        self._rules.clear()

    def between(self, source: str, target: str) -> Rule:
        return self._rules.get((source, target), FINE)

    def unlucky(self, share: float) -> bool:
        return self._rng.random() < share

    def start(self, host: str, command: list[str], log: Path, environment: dict[str, str], **popen: object,
              ) -> subprocess.Popen[str]:
        started = _popen(command, log, environment, **popen)
        self._processes[started.pid] = host
        return started

    def silence(self, host: str) -> None:
        """A TCP connection cannot be left hanging from here: the kernel says goodbye for who is killed."""

    def close(self) -> None:
        for proxy in self._proxies.values():
            proxy.close()


class _Proxy:
    """Threads: one that accepts, two a connection."""

    def __init__(self, network: Proxies, target: str, port: int) -> None:
        self._network, self._target, self._to = network, target, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name=f">{target}", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        who = self._network.whose(near)
        for source, target in ((who, self._target), (self._target, who)):
            while self._network.between(source, target).cut:
                self._network.counters["waits_of_connections_cut"] += 1
                if _gone(near):
                    near.close()
                    return
                time.sleep(0.05)
        try:
            far = socket.create_connection(("127.0.0.1", self._to), 5)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        threading.Thread(target=self._pump, args=(near, far, who, self._target), daemon=True).start()
        self._pump(far, near, self._target, who)

    def _pump(self, from_: socket.socket, to: socket.socket, source: str, target: str) -> None:
        try:
            for data in iter(lambda: from_.recv(1 << 16), b""):
                rule = self._network.between(source, target)
                while rule.cut:  # as TCP without acknowledgements: it waits, until somebody gives up
                    self._network.counters["waits_of_connections_cut"] += 1
                    time.sleep(0.05)
                    rule = self._network.between(source, target)
                if rule.loss and self._network.unlucky(rule.loss):
                    self._network.counters["connections_dropped"] += 1
                    break
                if rule.delay_s or rule.jitter_s:
                    self._network.counters["chunks_delayed"] += 1
                    time.sleep(rule.delay_s + rule.jitter_s * random.random())
                to.sendall(data)
        except OSError:
            pass
        for end in (from_, to):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _inodes(port: int, to: int) -> set[str]:
    """Of the sockets of this machine that are connected from one port to another, as ``/proc`` names them."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if [int(end.rpartition(":")[2], 16) for end in fields[1:3]] == [port, to]:
                    found.add(f"socket:[{fields[9]}]")
    return found


def _gone(near: socket.socket) -> bool:
    try:
        return near.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@contextlib.contextmanager
def network(kind: str, seed: int = 0) -> Iterator[Network]:
    """``packets`` or ``proxies``."""
    made: Network = Wires(seed) if kind == Wires.kind else Proxies(seed)
    try:
        yield made
    finally:
        made.close()
