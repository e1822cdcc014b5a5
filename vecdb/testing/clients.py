"""Those who use a cluster: one call at a time each, sent again until it is answered, all of it written down."""

from collections.abc import Callable
from dataclasses import dataclass, field

from vecdb.core.errors import NotLeader, VecdbError
from vecdb.raft.membership import node_of
from vecdb.raft.replica import Replica
from vecdb.testing.cluster import Cluster
from vecdb.testing.linear import NEVER, Operation
from vecdb.testing.register import COMPARE_AND_SET, WRITE, command

ATTEMPT_S = 1.0
GIVE_UP_S = 6.0


@dataclass(slots=True)
class _Call:
    kind: str
    group: int
    key: int
    sequence: int
    start: float
    value: int = 0
    expected: int = 0
    end: float = NEVER
    result: int = 0
    attempts: int = 0
    over: bool = False
    """Answered or given up: what comes later is not heard."""


@dataclass(slots=True)
class History:
    """What clients asked and what they were told, by group and key."""

    calls: dict[tuple[int, int], list[_Call]] = field(default_factory=dict)
    _acknowledged: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def add(self, call: _Call) -> None:
        self.calls.setdefault((call.group, call.key), []).append(call)

    def acknowledge(self, client: int, call: _Call) -> None:
        if call.kind != "read":
            self._acknowledged.setdefault(call.group, []).append((client, call.sequence))

    @property
    def keys(self) -> list[tuple[int, int]]:
        return sorted(self.calls)

    @property
    def groups(self) -> list[int]:
        return sorted(self._acknowledged)

    def acknowledged(self, group: int) -> list[tuple[int, int]]:
        return self._acknowledged.get(group, [])

    def operations(self, group: int, key: int) -> list[Operation]:
        return [Operation(call.kind, call.start, call.end, call.value, call.expected, call.result)
                for call in self.calls[group, key]]


class Client:
    """Asks whom it takes for the leader; follows hints; tries others when nobody answers."""

    def __init__(self, cluster: Cluster, history: History, number: int, groups: list[int], keys: int,
                 think_s: float = 0.05) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.history = history
        self.number = number
        self.groups = groups
        self.keys = keys
        self.think_s = think_s
        self.stopped = False
        self.busy = False
        self._sequence = 0
        self._values = 0
        self._guess: dict[int, str] = {}

    def start(self) -> None:
        self.world.at(self.world.random.random() * self.think_s, self._next)

    def _next(self) -> None:
        if self.stopped:
            return
        random = self.world.random
        kind = random.choice(("write", "write", "cas", "read", "read"))
        self.ask(kind, random.choice(self.groups), random.randrange(self.keys))

    def ask(self, kind: str, group: int, key: int, then: Callable[[], None] | None = None) -> None:
        """One call; ``then``, by default the next one, follows when it is over."""
        self.busy = True
        call = _Call(kind, group, key, 0, self.world.now)
        if kind != "read":
            self._sequence += 1
            self._values += 1
            call.sequence, call.value = self._sequence, self.number * 100_000 + self._values
        if kind == "cas":
            writes = [one.value for one in self.history.calls.get((group, key), ()) if one.kind != "read"]
            call.expected = self.world.random.choice([0, *writes[-3:]])
        self.history.add(call)
        self.world.happened[f"calls_{kind}"] += 1
        self._attempt(call, then or self._later)

    def _later(self) -> None:
        self.world.at(self.world.random.random() * 2 * self.think_s, self._next)

    def _attempt(self, call: _Call, then: Callable[[], None]) -> None:
        if call.over:
            return
        if self.world.now - call.start > GIVE_UP_S:
            self.world.happened["calls_given_up"] += 1
            self._over(call, then)
            return
        call.attempts += 1
        mine = call.attempts
        if mine > 1:
            self.world.happened["calls_retried"] += 1

        def again(after: float) -> None:
            if call.attempts == mine:
                self.world.at(after, lambda: self._attempt(call, then) if call.attempts == mine else None)

        name = self._guess.pop(call.group, None) or self.world.random.choice(sorted(self.cluster.nodes))
        node = self.cluster.nodes[name]
        replica = self.cluster.replica(name, call.group)
        shell = node.shell
        if replica is None or shell is None:
            again(0.05)
            return

        def answered(index: int, result: object, error: VecdbError | None) -> None:
            if call.over or not shell.alive:
                return
            if error is None:
                self._guess[call.group] = name
                call.end, call.result = self.world.now, int(bool(result)) if call.kind != "read" else self._read(
                    replica, call.key)
                self.history.acknowledge(self.number, call)
                self.world.happened["calls_answered"] += 1
                self._over(call, then)
                return
            if isinstance(error, NotLeader) and error.leader is not None:
                self._guess[call.group] = node_of(error.leader)
            again(0.02 + self.world.random.random() * 0.1)

        node.do(shell, lambda: self._send(replica, call, answered), "clients")
        again(ATTEMPT_S)

    def _send(self, replica: Replica, call: _Call, answered: Callable[[int, object, VecdbError | None], None]) -> None:
        if replica.halted:
            answered(0, None, NotLeader("halted"))
        elif call.kind == "read":
            replica.read_index(answered)
        else:
            opcode = WRITE if call.kind == "write" else COMPARE_AND_SET
            replica.core.propose(command(opcode, self.number, call.sequence, call.key, call.value, call.expected),
                                 answered)
        replica.host.turn()

    def _read(self, replica: Replica, key: int) -> int:
        return self.cluster.machine_of(replica).state.values.get(key, 0)

    def _over(self, call: _Call, then: Callable[[], None]) -> None:
        call.over = True
        self.busy = False
        then()
