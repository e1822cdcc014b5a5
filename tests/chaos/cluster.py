"""Nodes and clients as processes of their own, and all that may be done to them."""

import json
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.chaos.disks import PLAIN, Disk
from tests.chaos.history import Event, load
from tests.chaos.networks import Network
from tests.faults import ROOT
from vecdb.rpc.peer_certificates import issue

START_S = 120.0
ANSWER_S = 150.0
NAME = "chaos"


class Failed(AssertionError):
    """A process ended or did not answer."""


class Member:
    """A node of the cluster, running or not."""

    def __init__(self, name: str, place: Path, network: Network, settings: dict[str, str], others: Iterable[str],
                 disk: str) -> None:
        self.name, self.log = name, place / f"{name}.log"
        self.network = network
        self.disk = Disk(place / name, disk)
        self.process: subprocess.Popen[str] | None = None
        self._told = 0
        self._ready = place / f"{name}.ready.json"
        nodes = ",".join(f"{other}={network.peer(other)}" for other in others)
        self._settings = {"VECDB_SERVER__NODE_ID": name, "VECDB_SERVER__HOST": network.address(name),
                          "VECDB_SERVER__WARM_UP": "false", "VECDB_SERVER__DRAIN_S": "5",
                          "VECDB_TELEMETRY__RECALL_SAMPLES_PER_MINUTE": "0", **settings}
        if nodes:
            self._settings |= {"VECDB_CLUSTER__HOST": network.address(name), "VECDB_CLUSTER__NODES": nodes,
                               "VECDB_CLUSTER__PEER_PORT": str(network.peer_port(name))}

    @property
    def address(self) -> str:
        return f"{self.network.address(self.name)}:{self.network.client_port(self.name)}"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Begin to start; :meth:`wait` for it."""
        self._ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "vecdb.cli", "serve", "--data", str(self.disk.data), "--port",
                   str(self.network.client_port(self.name)), "--http-port", "-1", "--ready-file", str(self._ready)]
        self.process = self.network.start(self.name, command, self.log,
                                          self._settings | self.disk.environment(), cwd=ROOT)

    def wait(self, seconds: float = START_S) -> None:
        end = time.monotonic() + seconds
        while not self.ready:
            if not self.running:
                raise Failed(f"{self.name} ended with {self.process and self.process.returncode}:\n{self.words()}")
            if time.monotonic() > end:
                raise Failed(f"{self.name} was not ready after {seconds:g} s:\n{self.words()}")
            time.sleep(0.02)

    @property
    def ready(self) -> bool:
        return self._ready.exists() and self._ready.read_text(encoding="utf-8").strip().endswith("}")

    def kill(self, *, silent: bool = False) -> None:
        """SIGKILL; ``silent``: its connections are not closed either, as when the power goes."""
        if silent:
            self.network.silence(self.name)
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self) -> int:
        """SIGTERM and what came of it."""
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"{self.name} did not stop:\n{self.words()}") from None

    def faults(self) -> Counter[str]:
        """What its log calls errors since this was asked last, by name; what is no line of a log is one, too."""
        if not self.log.exists():
            return Counter()
        with self.log.open("rb") as file:
            file.seek(self._told)
            text = file.read()
        self._told += text.rfind(b"\n") + 1
        found: Counter[str] = Counter()
        for line in text.splitlines():
            if line.startswith(b'{"') and b'"level":"error"' in line:
                found[str(json.loads(line).get("event")).split("\n")[0].split(" ")[0]] += 1
            elif line.startswith(b"Traceback"):
                found["Traceback"] += 1
        return found

    def words(self, count: int = 3000) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-count:] if self.log.exists() else ""


class Clients:
    """A worker process (:mod:`tests.chaos.worker`)."""

    def __init__(self, name: str, place: Path, network: Network) -> None:
        self.name, self._events = name, place / f"events.{name}"
        self._log = place / f"{name}.log"
        self._read: dict[int, tuple[int, list[Event]]] = {}
        self.count = 0
        self._process = network.start(name, [sys.executable, "-m", "tests.chaos.worker"], self._log, {},
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)

    def open(self, addresses: list[str], clients: int, seed: int, pause_s: float) -> None:
        self.count = clients
        self.ask("open", addresses=addresses, name=self.name, events=str(self._events), clients=clients, seed=seed,
                 pause_s=pause_s)

    def ask(self, what: str, wait_s: float = ANSWER_S, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self._process.stdin.flush()
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._process.stdout, selectors.EVENT_READ)
            if not waiting.select(wait_s):
                raise Failed(f"clients {self.name} did not {what} in {wait_s:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"clients {self.name} ended: {self._log.read_text(encoding='utf-8')[-2000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise Asked(f"{what}: {answer['error']}\n{answer['trace']}")
        return answer["result"]

    def events(self) -> list[Event]:
        """All there are, client by client."""
        for number in range(self.count):
            upto, events = self._read.get(number, (0, []))
            upto, more = load(Path(f"{self._events}.{number}"), upto)
            self._read[number] = upto, events + more
        return [event for _, events in self._read.values() for event in events]

    def close(self) -> None:
        self._process.kill()
        self._process.wait(30)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


class Asked(Failed):
    """A command of clients failed."""


class Cluster:
    """``nodes`` nodes with a collection on all of them, and clients who know all addresses."""

    def __init__(self, place: Path, network: Network, *, nodes: int = 3, disk: str = PLAIN, seed: int = 0,
                 workers: int = 2, clients: int = 3, pause_s: float = 0.03, secured: bool = False,
                 log_bytes: str = "1MiB") -> None:
        self.place, self.network, self.seed, self.disk = place, network, seed, disk
        names = [f"n{number}" for number in range(1, nodes + 1)]
        settings = {"VECDB_LOG__LEVEL": "info", "VECDB_LOG__FORMAT": "json", "VECDB_ENGINE__SEAL_RECORDS": "1000",
                    "VECDB_ENGINE__THREADS": "1"}
        if nodes > 1:
            settings |= {"VECDB_CLUSTER__NAME": NAME, "VECDB_CLUSTER__INSECURE": str(not secured).lower(),
                         "VECDB_CLUSTER__LOG_BYTES": log_bytes, "VECDB_CLUSTER__BALANCE_LEADERS": "false"}
        if secured:
            issue(place / "certificates", NAME, names)
        self.members = [Member(name, place, network, settings | (_certificates(place, name) if secured else {}),
                               names if nodes > 1 else (), disk) for name in names]
        self.workers = [Clients(f"w{number}", place, network) for number in range(workers)]
        self._shape = clients, pause_s

    def start(self) -> None:
        for member in self.members:
            member.start()
        for member in self.members:
            member.wait()
        clients, pause_s = self._shape
        for worker in self.workers:
            worker.open([member.address for member in self.members], clients, self.seed, pause_s)
        self.workers[0].ask("create", seconds=60.0)

    def member(self, name: str) -> Member:
        return next(one for one in self.members if one.name == name)

    def shards(self) -> list[dict[str, Any]]:
        """As the first node sees them that answers."""
        error: Failed | None = None
        for member in self.members:
            if member.running:
                try:
                    return list(self.workers[0].ask("shards", address=member.address))
                except Asked as failed:
                    error = failed
        raise error or Failed("no node runs")

    def halted(self) -> set[str]:
        """Nodes with replicas that have given up."""
        return {one["node"] for shard in self.shards() for one in shard["replicas"] if one["state"] == "halted"}

    def leader(self, seconds: float = 60.0) -> Member:
        """The node that leads the collection's shard."""

        def found() -> Member | None:
            shard = next((one for one in self.shards() if one["collection"]), None)
            if shard is None or not shard["leader"]:
                return None
            return self.member(shard["leader"].split("/")[0])

        return wait_for(found, seconds, "nobody leads")

    def settled(self, seconds: float) -> float:
        """Wait until every replica of every group is well, and as far as its leader; how long that took."""
        begun = time.monotonic()

        def well() -> bool:
            shards = self.shards()
            return len(shards) >= min(len(self.members), 2) and all(
                shard["leader"] and len(shard["replicas"]) == len(self.members) and all(
                    one["state"] == "ok" and one["role"] in ("leader", "follower") and one["lag"] <= 0
                    for one in shard["replicas"]) for shard in shards)

        wait_for(well, seconds, lambda: f"not well again: {json.dumps(self.shards(), indent=1)}")
        return time.monotonic() - begun

    def close(self) -> None:
        for member in self.members:
            if member.running:
                member.signal(signal.SIGCONT)
                member.kill()
        for worker in self.workers:
            worker.close()
        for member in self.members:
            member.disk.close()


def _certificates(place: Path, name: str) -> dict[str, str]:
    folder = place / "certificates"
    return {"VECDB_CLUSTER__CERT_FILE": str(folder / f"{name}.pem"), "VECDB_CLUSTER__CA_FILE": str(folder / "ca.pem"),
            "VECDB_CLUSTER__KEY_FILE": str(folder / f"{name}.key")}


def wait_for(found: Callable[[], Any], seconds: float, what: str | Callable[[], str]) -> Any:
    """Ask until the answer is true."""
    end = time.monotonic() + seconds
    error: Failed | None = None
    while True:
        try:
            if answer := found():
                return answer
            error = None
        except Failed as failed:
            error = failed
        if time.monotonic() > end:
            said = str(error) if error is not None else what if isinstance(what, str) else what()
            raise Failed(f"after {seconds:g} s: {said}")
        time.sleep(0.1)

