"""A process of clients: ``python -m tests.chaos.worker``; a command a line in, an answer a line out, both JSON.

Each client is a thread with a connection of its own to all nodes.  What it does and sees goes to a file of events
(:mod:`tests.chaos.history`), line by line.  The process also asks on the harness's behalf, for it alone may be in the
network of the nodes.
"""

import json
import random
import sys
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np

import vecdb
from tests.chaos.history import Event
from vecdb.core.errors import VecdbError
from vecdb.v1 import shards_pb2

COLLECTION = "chaos"
DIM = 16
PAD = 16_000
CALL_S = 5.0
SLICE_S = 1.0
KEYS = 5
"""Shared keys of one slice of time."""
OWN, APPENDED = 1 << 40, 2 << 40


def vector_of(key: int, value: int) -> np.ndarray:
    return np.random.default_rng([key, value]).standard_normal(DIM).astype(np.float32)


def record_of(record: Any) -> list[int]:
    """What a read saw, whose vector must be that of its upsert."""
    upsert, latest = int(record.metadata["a"]), int(record.metadata["v"])
    if not np.array_equal(record.vector, vector_of(int(record.id), upsert)):
        raise AssertionError(f"record {record.id}: its vector is not that of write {upsert}")
    return [upsert, latest]


class Worker:
    """The commands are its public methods."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.name = ""
        self.tokens: dict[str, tuple[int, int, str]] = {}
        self._clients: list[Client] = []
        self._threads: list[threading.Thread] = []
        self.stop = threading.Event()

    def open(self, addresses: list[str], name: str, events: str, clients: int, seed: int, pause_s: float) -> None:
        self.addresses, self.name = addresses, name
        self._clients = [Client(self, f"{name}.{number}", number, Path(f"{events}.{number}"), seed + number, pause_s)
                         for number in range(clients)]

    def create(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while True:
            try:
                with vecdb.connect(self.url(), timeout=CALL_S) as database:
                    database.get_or_create_collection(COLLECTION, DIM, "l2")
                return
            except VecdbError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def url(self, addresses: list[str] | None = None) -> str:
        return "grpc://" + ",".join(addresses or self.addresses)

    def load(self, round: int) -> None:
        self.stop.clear()
        self.tokens.clear()
        self._threads = [threading.Thread(target=client.run, args=(round, ), daemon=True) for client in self._clients]
        for thread in self._threads:
            thread.start()

    def pause(self) -> dict[str, int]:
        self.stop.set()
        for thread in self._threads:
            thread.join(60)
            if thread.is_alive():
                raise AssertionError(f"a call with {CALL_S:g} s did not come back in a minute")
        return {"operations": sum(client.operations for client in self._clients)}

    def read(self, round: int, keys: list[int]) -> None:
        """Read keys linearizably, as events of the round; called while nobody writes."""
        self._clients[0].read_all(round, keys)

    def write(self, seconds: float) -> float:
        """Write until it works; how long that took."""
        return self._clients[0].write_until(seconds)

    def shards(self, address: str) -> list[dict[str, Any]]:
        """As one node sees them."""
        with grpc.insecure_channel(address) as channel:
            call = channel.unary_unary("/vecdb.v1.Shards/ListShards")
            reply = shards_pb2.ListShardsReply.FromString(call(
                shards_pb2.ListShardsRequest().SerializeToString(), timeout=CALL_S, wait_for_ready=True))
        return [{"collection": shard.collection, "leader": shard.leader, "healthy": shard.healthy, "replicas": [
            {"node": one.node, "state": one.state, "role": one.role, "applied": one.applied, "member": one.member,
             "lag": one.lag if one.HasField("lag") else -1, "behind": one.behind if one.HasField("behind") else -1,
             "first": one.first, "error": one.error}
            for one in shard.replicas]} for shard in reply.shards]

    def verify(self, address: str, deep: bool) -> dict[str, Any]:
        with grpc.insecure_channel(address) as channel:
            call = channel.unary_unary("/vecdb.v1.Shards/VerifyShard")
            reply = shards_pb2.VerifyShardReply.FromString(call(
                shards_pb2.VerifyShardRequest(collection=COLLECTION, deep=deep).SerializeToString(), timeout=60))
        return {"agree": reply.agree, "complete": reply.complete, "replicas": [
            {"name": one.name, "state": one.state, "digest": one.digest, "records": one.records, "deep": one.deep,
             "error": one.error} for one in reply.replicas]}

    def everything(self, address: str) -> dict[str, int]:
        """All appended records one node has, by its own replica, with the values they carry."""
        found: dict[str, int] = {}
        with vecdb.connect(self.url([address]), timeout=60.0, consistency="eventual") as database:
            for record in database[COLLECTION].scan(include=("metadata", "vector")):
                _, latest = record_of(record)
                if int(record.id) >= APPENDED:
                    found[str(record.id)] = latest
        return found

    def queries(self, address: str, count: int, seed: int) -> dict[str, int]:
        """Queries of one node for records it has: how many found themselves, of how many."""
        rng = random.Random(seed)
        with vecdb.connect(self.url([address]), timeout=60.0, consistency="eventual") as database:
            collection = database[COLLECTION]
            records = list(collection.scan(include=("metadata", "vector")))
            asked = rng.sample(records, min(count, len(records)))
            found = 0
            for record in asked:
                hits = collection.query(record.vector, k=3, include=["metadata"])
                distances = [hit.distance for hit in hits]
                if distances != sorted(distances):
                    raise AssertionError(f"hits are not sorted: {distances}")
                found += bool(hits) and hits[0].distance < 1e-3
        return {"asked": len(asked), "found": found}

    def transfer(self, address: str, to: str) -> None:
        with grpc.insecure_channel(address) as channel:
            channel.unary_unary("/vecdb.v1.Shards/TransferLeader")(
                shards_pb2.TransferLeaderRequest(collection=COLLECTION, to=to).SerializeToString(), timeout=CALL_S)


class Client:
    """One thread's work, one call after another."""

    def __init__(self, worker: Worker, name: str, number: int, events: Path, seed: int, pause_s: float) -> None:
        self.worker, self.name, self.number = worker, name, number
        self.operations = 0
        self._rng = random.Random(f"{seed} {name}")
        self._pause_s = pause_s
        self._events = events.open("a", encoding="utf-8", buffering=1)
        self._database: Any = None
        self._opened: Any = None
        self._sequence = 0
        self._own = 0
        self._mine: list[int] = []

    def _collection(self) -> Any:
        if self._opened is None:
            if self._database is None:
                self._database = vecdb.connect(self.worker.url(), timeout=CALL_S, connect_timeout=0.0)
            self._opened = self._database[COLLECTION]
        return self._opened

    def _next(self) -> int:
        """A number no other client has: of 31 bits, growing."""
        self._sequence += 1
        worker = int(self.worker.name.strip("w"))
        return (self._sequence * 64 + worker * 8 + self.number) & 0x7FFFFFFF

    def _done(self, event: Event, call: Any) -> Any:
        """Make the call and note what came of it; what is no error of ours is one of the product's."""
        begun = replace(event, start=time.monotonic())
        result, error = None, ""
        try:
            result = call()
        except VecdbError as caught:
            error = f"{type(caught).__name__}: {caught}"[:300]
        except Exception as caught:
            error = f"UNEXPECTED {type(caught).__name__}: {caught}"[:1000]
        ended = replace(begun, end=time.monotonic(), result=result, error=error)
        self._events.write(ended.line() + "\n")
        self.operations += 1
        return ended

    def run(self, round: int) -> None:
        begun, self._own = time.monotonic(), 0
        try:
            while not self.worker.stop.is_set():
                self._step(round, int((time.monotonic() - begun) / SLICE_S))
                time.sleep(self._rng.random() * 2 * self._pause_s)
        except Exception:
            self._events.write(Event(round, self.name, "broken", 0, error="UNEXPECTED " + traceback.format_exc()).line()
                               + "\n")

    def _step(self, round: int, slice_: int) -> None:
        dice = self._rng.random()
        key = round * 100_000 + slice_ * KEYS + self._rng.randrange(KEYS)
        if dice < 0.25:
            self._upsert(Event(round, self.name, "upsert", key, self._next()))
        elif dice < 0.32:
            self._delete(Event(round, self.name, "delete", key))
        elif dice < 0.42:
            self._update(Event(round, self.name, "update", key, self._next()))
        elif dice < 0.62:
            self._get(Event(round, self.name, "read", key), "linearizable")
        elif dice < 0.67:
            self._get(Event(round, self.name, "eventual", key), "eventual")
        elif dice < 0.85:
            self._session(round)
        else:
            self._append(round)

    def _upsert(self, event: Event) -> Event:
        metadata: dict[str, Any] = {"a": event.value, "v": event.value}
        if event.key >= OWN:  # so that logs grow, are cut off, and replicas that come late need a snapshot
            metadata["p"] = "x" * self._rng.randrange(PAD)

        def call() -> bool:
            done = self._collection().upsert(ids=[event.key], vectors=vector_of(event.key, event.value)[None],
                                             metadata=[metadata])
            return bool(done.updated)

        return self._done(event, call)

    def _delete(self, event: Event) -> Event:
        return self._done(event, lambda: bool(self._collection().delete(ids=[event.key]).deleted))

    def _update(self, event: Event) -> Event:
        return self._done(event, lambda: bool(self._collection().update_metadata(
            ids=[event.key], metadata={"v": event.value}).updated))

    def _get(self, event: Event, consistency: str) -> Event:
        def call() -> list[int] | None:
            record = self._collection().get(event.key, consistency=consistency)
            return None if record is None else record_of(record)

        return self._done(event, call)

    def _session(self, round: int) -> None:
        """Write our own key and read it, or read another's by the token we were given."""
        me = OWN | round << 12 | int(self.worker.name.strip("w")) << 6 | self.number
        others = [said for name, said in list(self.worker.tokens.items()) if name != self.name]
        if others and self._database is not None and self._rng.random() < 0.3:
            key, floor, token = self._rng.choice(others)
            self._database.use_session_token(token)
            self._get(Event(round, self.name, "session", key, floor=floor), "session")
            return
        done = self._upsert(Event(round, self.name, "own", me, self._next()))
        if done.ok:
            self._own = done.value
            self.worker.tokens[self.name] = me, done.value, self._database.session_token()
        self._get(Event(round, self.name, "session", me, floor=self._own), "session")

    def _append(self, round: int) -> None:
        if self._mine and self._rng.random() < 0.15:
            key = self._mine.pop(self._rng.randrange(len(self._mine)))
            self._delete(Event(round, self.name, "remove", key))
            return
        value = self._next()
        key = APPENDED | value
        if self._upsert(Event(round, self.name, "append", key, value)).ok:
            self._mine.append(key)

    def read_all(self, round: int, keys: list[int]) -> None:
        for key in keys:
            self._get(Event(round, self.name, "read", key), "linearizable")

    def write_until(self, seconds: float) -> float:
        begun = time.monotonic()
        while True:
            value = self._next()
            done = self._upsert(Event(0, self.name, "append", APPENDED | value, value))
            if done.ok:
                return time.monotonic() - begun
            if time.monotonic() - begun > seconds:
                raise AssertionError(f"no write was acknowledged for {seconds:g} s: {done.error}")
            time.sleep(0.05)


def main() -> None:
    worker = Worker()
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = {"result": getattr(worker, command.pop("do"))(**command)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
