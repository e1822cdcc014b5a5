"""Those who write and read records in a simulated cluster, at every consistency; all they are told is written down."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vecdb.core.calls import Consistency, WriteToken
from vecdb.core.errors import NotLeader, Unavailable, VecdbError
from vecdb.core.ids import RecordId
from vecdb.core.records import WriteResult
from vecdb.raft.membership import node_of
from vecdb.raft.replica import Replica
from vecdb.shard import codec
from vecdb.shard.marks import Mark, MarkResult
from vecdb.testing.cluster import Cluster, Node
from vecdb.testing.linear import NEVER
from vecdb.testing.records import Read, RecordStep, Write, draw_read, draw_write, value_in
from vecdb.testing.shard_checks import RecordHistory, ShardJudge
from vecdb.testing.shards import DIM, ShardHome, Watched, name_of
from vecdb.testing.violation import Violation

ATTEMPT_S = 1.0
GIVE_UP_S = 5.0
NONSENSE = b"\x01\x01\x00nonsense"
"""A command that nobody can read."""


@dataclass(slots=True)
class _Call:
    group: int
    start: float
    command: bytes = b""
    token: bytes = b""
    write: Write | None = None
    """Of a command that means something to records."""
    read: Read | None = None
    consistency: Consistency = Consistency.EVENTUAL
    attempts: int = 0
    over: bool = False
    again: WriteResult | None = None
    """Of a command that was answered before: what it did."""
    least: int = 0
    """The log index that a read must have seen."""


@dataclass(slots=True)
class ShardClient:
    """One call at a time, sent again until it is answered or given up."""

    cluster: Cluster
    judge: ShardJudge
    history: RecordHistory
    number: int
    groups: list[int]
    ids: Sequence[RecordId]
    think_s: float = 0.05
    stopped: bool = False
    busy: bool = False
    _sequence: int = 0
    _values: int = 0
    _guess: dict[int, str] = field(default_factory=dict)
    _session: dict[int, int] = field(default_factory=dict)
    _sent: dict[int, list[tuple[bytes, bytes, WriteResult]]] = field(default_factory=dict)
    """Commands that were answered, with their tokens and answers."""
    _known: dict[int, list[tuple[RecordId, int]]] = field(default_factory=dict)

    def start(self) -> None:
        self._later()

    def _later(self) -> None:
        self.cluster.world.at(self.cluster.world.random.random() * 2 * self.think_s, self._next)

    def _next(self) -> None:
        if self.stopped:
            return
        random = self.cluster.world.random
        group = random.choice(self.groups)
        chance = random.random()
        if chance < 0.47:
            self.write(group)
        elif chance < 0.5:
            self._once_more(group)
        elif chance < 0.95:
            self.read(group, draw_read(random, self.ids, DIM), random.choice(list(Consistency)))
        else:
            command = codec.encode(Mark()) if chance < 0.99 else NONSENSE
            self._ask(_Call(group, self.cluster.world.now, command), self._later)

    def write(self, group: int, then: Callable[[], None] | None = None) -> None:
        world = self.cluster.world
        values = [self.number * 1_000_000 + self._values + at for at in range(1, 4)]
        self._values += 3
        self._sequence += 1
        write = draw_write(world.random, self.ids, values, self._known.get(group, ()), DIM)
        for one, (_, value, _) in write.touched.items():
            if value:
                self._known[group] = [*self._known.get(group, [])[-5:], (one, value)]
        key = f"c{self.number}-{self._sequence}".encode()
        token = WriteToken(key, self._sequence)
        world.happened[f"calls_{write.kind}"] += 1
        self._ask(_Call(group, world.now, codec.encode(write.command, token), key, write), then or self._later)

    def _once_more(self, group: int) -> None:
        """Send a command that was answered once more: somebody on its way may have kept it."""
        sent = self._sent.get(group)
        if not sent:
            self.write(group)
            return
        command, key, told = self.cluster.world.random.choice(sent)
        self.cluster.world.happened["calls_once_more"] += 1
        self._ask(_Call(group, self.cluster.world.now, command, key, again=told), self._later)

    def read(self, group: int, read: Read, consistency: Consistency, then: Callable[[], None] | None = None) -> None:
        call = _Call(group, self.cluster.world.now, read=read, consistency=consistency)
        if consistency is Consistency.SESSION:
            call.least = self._session.get(group, 0)
        elif consistency is Consistency.LINEARIZABLE:
            call.least = self.history.furthest.get(group, 0)
        self.cluster.world.happened[f"calls_{consistency.value}_{read.kind}"] += 1
        self._ask(call, then or self._later)

    # --- attempts ---------------------------------------------------------------------------------

    def _ask(self, call: _Call, then: Callable[[], None]) -> None:
        self.busy = True
        self._attempt(call, then)

    def _attempt(self, call: _Call, then: Callable[[], None]) -> None:
        world = self.cluster.world
        if call.over:
            return
        if world.now - call.start > GIVE_UP_S:
            world.happened["calls_given_up"] += 1
            self._done(call, None)
            self._over(call, then)
            return
        call.attempts += 1
        mine = call.attempts
        world.happened["calls_retried"] += mine > 1

        def again(after: float) -> None:
            if call.attempts == mine:
                world.at(after, lambda: self._attempt(call, then) if call.attempts == mine else None)

        only_leader = call.read is None or call.consistency is Consistency.LINEARIZABLE
        name = (self._guess.pop(call.group, None) if only_leader else None) \
            or world.random.choice(sorted(self.cluster.nodes))
        node, replica = self.cluster.nodes[name], self.cluster.replica(name, call.group)
        shell = node.shell
        if replica is None or shell is None:
            again(0.05)
            return

        def answered(index: int, result: object, error: VecdbError | None) -> None:
            if call.over or not shell.alive:
                return
            if error is None and call.read is not None:
                error = self._read(node, replica, call)
            if error is None or (call.command == NONSENSE and not error.retryable):
                if only_leader:
                    self._guess[call.group] = name
                self._done(call, result)
                world.happened["calls_answered"] += 1
                self._over(call, then)
                return
            if not error.retryable and call.read is None:
                raise Violation(f"{name}: {call.write or 'a mark'} was refused: {type(error).__name__}: {error}")
            if isinstance(error, NotLeader) and error.leader is not None:
                self._guess[call.group] = node_of(error.leader)
            again(0.02 + world.random.random() * 0.1)

        node.do(shell, lambda: self._send(replica, call, answered), "clients")
        again(ATTEMPT_S)

    def _send(self, replica: Replica, call: _Call, answered: Callable[[int, object, VecdbError | None], None]) -> None:
        if replica.halted:
            answered(0, None, Unavailable("halted"))
        elif call.read is None:
            replica.core.propose(call.command, answered)
        elif call.consistency is Consistency.LINEARIZABLE:
            replica.read_index(answered)
        elif call.consistency is Consistency.SESSION:
            replica.wait_applied(call.least, lambda error: answered(0, None, error))
        else:
            answered(0, None, None)
        replica.host.turn()

    def _read(self, node: Node, replica: Replica, call: _Call) -> VecdbError | None:
        """Read where it was waited; the judge looks at the answer, and an error lets it be asked again."""
        home, machine, read = node.home, replica.machine, call.read
        assert isinstance(home, ShardHome)
        assert isinstance(machine, Watched)
        assert read is not None
        who = f"{node.name}: a {call.consistency.value} {read.kind} of group {call.group}"
        is_whole = not home.damaged.get(call.group, False)
        name, database = name_of(call.group), home.database
        try:
            answer: object
            if read.kind == "fetch":
                answer = database.fetch(name, read.ids)
            elif read.kind == "count":
                answer = database.count(name, read.where)
            else:
                assert read.request is not None
                answer = database.query(name, read.request)
        except VecdbError as error:
            self.judge.unreadable(who, error, is_whole)
            return Unavailable(f"read elsewhere: {error.message}")
        at = machine.position().log_index
        if at < call.least:
            raise Violation(f"{who} at {at} did not see {call.least}")
        moment = self.judge.model(call.group).at(at)
        self.judge.read(f"{who} at {at}", moment, read, answer, is_whole)
        if read.kind == "fetch" and call.consistency is Consistency.LINEARIZABLE:
            assert isinstance(answer, list)
            values = {record.id: value_in(record.metadata) for record in answer}
            for one in read.ids:
                self.history.step(call.group, one, RecordStep("read", call.start, self.cluster.world.now,
                                                              result=values.get(one, 0)))
        return None

    # --- ends -------------------------------------------------------------------------------------

    def _done(self, call: _Call, result: object) -> None:
        """Write down what became of a command."""
        write = call.write
        if call.again is not None and result is not None and result != call.again:
            raise Violation(f"{call.token.decode()} did {call.again}, and once more {result}")
        if write is None:
            assert call.again is not None or result is None or call.read is not None or isinstance(result, MarkResult)
            return
        told = result if isinstance(result, WriteResult) else None
        end = NEVER if told is None else self.cluster.world.now
        for one, (kind, value, expected) in write.touched.items():
            found = None if told is None else write.found(one, told)
            self.history.step(call.group, one, RecordStep(kind, call.start, end, value, expected, found))
        if told is not None:
            self._sent[call.group] = [*self._sent.get(call.group, [])[-9:], (call.command, call.token, told)]
            self.history.acknowledge(call.group, call.token, told)
            self._session[call.group] = max(self._session.get(call.group, 0), told.log_index)

    def _over(self, call: _Call, then: Callable[[], None]) -> None:
        call.over = True
        self.busy = False
        then()
