"""The judge of whole nodes: collections that come and go, and records in them, by what clients saw.

Records are held against the models of :mod:`~vecdb.testing.shard_checks`; but who asks a node is not told at which log
index a replica answered.  So an answer is right if there is *some* moment of *some* shard of that name that explains
all of it: no earlier than the session's writes, or, of a linearizable read, than everything acknowledged before it.

Collections are registers (there or not) that are created, dropped and seen: their histories are linearizable too, as
far as the control group tells of them.  What is promised of records is promised shard by shard: who has not heard of a
drop yet still reads and writes the shard as it was.  That is counted while there are faults; once they are healed
nothing rises from the dead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from vecdb.core.calls import Consistency
from vecdb.core.ids import RecordId
from vecdb.core.records import Record, WriteResult
from vecdb.services.control import ControlReplica
from vecdb.services.replica import ShardReplica
from vecdb.testing.linear import NEVER, linearizable
from vecdb.testing.records import Read, RecordStep, Write, value_in
from vecdb.testing.shard_checks import RecordHistory, ShardModels, linear
from vecdb.testing.violation import Violation
from vecdb.testing.world import World


@dataclass(frozen=True, slots=True)
class CollectionStep:
    """``kind``: create, drop, present, absent.  ``result``: of create and drop whether it was they who did it, None
    where that is not known.
    """

    kind: str
    start: float
    end: float
    result: int | None = None

    @property
    def reads(self) -> bool:
        return self.kind in ("present", "absent")

    def step(self, state: int) -> int | None:
        if self.reads:
            return state if state == (self.kind == "present") else None
        hit = state == (self.kind == "drop")
        if self.end != NEVER and self.result is not None and bool(self.result) != hit:
            return None
        return int(self.kind == "create")


@dataclass(slots=True)
class WriteCall:
    """A write as its client knows it."""

    name: str
    write: Write
    token: bytes
    start: float
    end: float = NEVER
    told: WriteResult | None = None


@dataclass(slots=True)
class ReadCall:
    """A read; ``least``: by group, what it must have seen."""

    name: str
    read: Read
    consistency: Consistency
    start: float
    least: dict[int, int]
    gone: frozenset[int]
    """Shards that somebody was told are dropped, before it began."""


@dataclass(slots=True)
class ServiceHistory:
    """What clients did and were told."""

    collections: dict[str, list[CollectionStep]] = field(default_factory=dict)
    writes: list[WriteCall] = field(default_factory=list)
    furthest: dict[int, int] = field(default_factory=dict)
    """By group: the latest log index anybody was told of."""

    def collection(self, name: str, step: CollectionStep) -> None:
        self.collections.setdefault(name, []).append(step)

    def acknowledge(self, call: WriteCall, told: WriteResult, now: float) -> None:
        call.told, call.end = told, now
        self.furthest[told.shard] = max(self.furthest.get(told.shard, 0), told.log_index)


class ServiceJudge(ShardModels):
    """Hears the machines of all nodes, and what clients were answered."""

    def __init__(self, world: World) -> None:
        super().__init__(world.happened)
        self.world = world
        self.healed = False
        """Nothing keeps anybody from knowing what there is."""
        self.names: dict[int, str] = {}
        """Of every group there ever was, the collection."""
        self.dropped: dict[int, bool] = {}
        """Groups that some node has seen dropped; True once a client was told of it."""
        self._leaders: dict[tuple[int, int], str] = {}
        self._control: dict[int, tuple[str, str]] = {}
        self._epochs: dict[int, int] = {}

    # --- machines ---------------------------------------------------------------------------------

    def shard_applied(self, node: str, group: int, replica: ShardReplica, log_index: int, command: bytes | None,
                      outcome: object) -> None:
        try:
            self.applied(node, group, replica, log_index, command, outcome)
        except Exception as error:
            self.world.failure = self.world.failure or error
            raise

    def control_applied(self, node: str, machine: ControlReplica) -> None:
        try:
            self._control_state(node, machine)
        except Exception as error:
            self.world.failure = self.world.failure or error
            raise

    def leads(self, group: int, term: int, replica: str) -> None:
        """A replica leads its group in a term; nobody else does or did."""
        first = self._leaders.setdefault((group, term), replica)
        if first != replica:
            self.world.failure = Violation(f"two leaders of group {group} in term {term}: {first} and {replica}")
        self.checked["leaders_checked"] += 1

    def _control_state(self, node: str, machine: ControlReplica) -> None:
        log_index, _, _, digest = machine.digest()
        first, who = self._control.setdefault(log_index, (digest, node))
        if first != digest:
            raise Violation(f"the control states of {node} and {who} differ at {log_index}")
        state = machine.state
        for entry in state.shards.values():
            if self.names.setdefault(entry.group, entry.name) != entry.name:
                raise Violation(f"group {entry.group} was {self.names[entry.group]!r} and is {entry.name!r} now")
            if entry.group >= state.next_group:
                raise Violation(f"{node}: group {entry.group} may be given once more")
            if len({one.rpartition('/')[0] for one in entry.replicas}) != len(entry.replicas):
                raise Violation(f"{node}: two replicas on a node: {entry.replicas}")
        alive = set(state.shards)
        for group in self.names:
            if group < state.next_group and group not in alive:
                self.dropped.setdefault(group, False)
        if any(group in self.dropped and self._dropped_at(group) < log_index for group in alive):
            raise Violation(f"{node}: a group that was dropped is back at {log_index}: {sorted(alive)}")
        for group in self.dropped:
            self._epochs.setdefault(group, log_index)
        self.checked["control_states_checked"] += 1

    def _dropped_at(self, group: int) -> int:
        return self._epochs.get(group, 1 << 62)

    def told_dropped(self, name: str) -> None:
        """A client was told that it has dropped a collection, or made it anew."""
        self.dropped.update({group: True for group in self.dropped if self.names[group] == name})

    def gone(self) -> frozenset[int]:
        return frozenset(group for group, told in self.dropped.items() if told)

    # --- answers ----------------------------------------------------------------------------------

    def answered(self, call: ReadCall, answer: object) -> int | None:
        """The group whose shard explains an answer; None if several do, or one that was dropped before."""
        groups = [group for group, name in self.names.items() if name == call.name]
        explains = [group for group in groups if group not in call.gone and self._explained(group, call, answer)]
        if not explains:
            gone = [group for group in groups if group in call.gone and self._explained(group, call, answer)]
            if gone and not self.healed:
                self.checked["reads_of_what_was_dropped"] += 1
                return None
            why = f"group {gone[0]}, which was dropped before" if gone else f"no moment of {groups}"
            raise Violation(f"a {call.consistency.value} {call.read} of {call.name!r} that began at {call.start:.4f} "
                            f"(least {call.least}) is explained by {why}: {_brief(answer)}")
        self.checked["reads_checked"] += 1
        return explains[0] if len(explains) == 1 else None

    def _explained(self, group: int, call: ReadCall, answer: object) -> bool:
        moments = self.model(group).moments
        least = call.least.get(group, 0)
        for log_index in sorted(moments, reverse=True):
            if log_index < least:
                return False
            try:
                self.read("", moments[log_index], call.read, answer, whole=True)
                return True
            except Violation:
                continue
        return False


def _brief(answer: object) -> str:
    if isinstance(answer, list):
        return str([(record.id, record.metadata) for record in answer if isinstance(record, Record)])
    return str(answer)


def collections_linear(world: World, history: ServiceHistory) -> None:
    """What clients saw of collections is explained by some order of their calls."""
    for name, steps in history.collections.items():
        if not linearizable(steps):
            lines = "\n".join(f"  {step}" for step in sorted(steps, key=lambda step: step.start))
            raise Violation(f"collection {name!r} is not linearizable:\n{lines}")
        world.happened["collections_checked"] += 1
        world.happened["collection_steps_checked"] += len(steps)


def writes_survived(judge: ServiceJudge, history: ServiceHistory) -> None:
    """Every acknowledged write is in the log of the shard its client was told of, and did there what it was told."""
    for call in history.writes:
        if call.told is None:
            continue
        model = judge.model(call.told.shard)
        at = model.tokens.get(call.token)
        if at is None:
            raise Violation(f"{call.told} was acknowledged to {call.token.decode()}, and is not in the log")
        done = model.at(at).outcome
        assert done is not None, "no mark has a token"
        if (done.inserted, done.updated, done.deleted, done.missing, done.log_index) != (
                call.told.inserted, call.told.updated, call.told.deleted, call.told.missing, call.told.log_index):
            raise Violation(f"{call.told} was acknowledged to {call.token.decode()}, {done} was done")
        judge.checked["acknowledgements_checked"] += 1


def records_linear(judge: ServiceJudge, history: ServiceHistory,
                   reads: Sequence[tuple[int, ReadCall, float, dict[RecordId, int]]]) -> None:
    """Records of every shard are linearizable; ``reads``: linearizable fetches, with the group that answered."""
    records = RecordHistory()
    for call in history.writes:
        for group, model in judge.models.items():
            if call.token not in model.tokens:
                continue  # it never took effect there
            told = call.told if call.told is not None and call.told.shard == group else None
            for one, (kind, value, expected) in call.write.touched.items():
                records.step(group, one, RecordStep(kind, call.start, NEVER if told is None else call.end, value,
                                                    expected, None if told is None else call.write.found(one, told)))
    for group, read, end, values in reads:
        for one in read.read.ids:
            records.step(group, one, RecordStep("read", read.start, end, result=values.get(one, 0)))
    linear(judge.world, records)


def values_of(records: Sequence[Record]) -> dict[RecordId, int]:
    return {record.id: value_in(record.metadata) for record in records}
