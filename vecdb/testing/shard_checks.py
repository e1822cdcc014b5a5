"""The judge of shard clusters: beside what every group is held to, every outcome, state and answer against a model.

While it runs:

- what a command did on a replica is what it does to a dictionary, and nothing the second time under the same token;
- a replica's records, digest and marks are the model's at that log index, after every command and every snapshot;
- a read at a replica is what the model says of the place the replica is at: all of it, whatever segments there are;
- a session's read is of no earlier place than its writes, a linearizable one of none before what anybody was told of.

Afterwards :func:`survived`, :func:`linear`, :func:`whole`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from vecdb.core.errors import DataCorrupted, InvalidArgument, ShardSealed, VecdbError
from vecdb.core.ids import RecordId
from vecdb.core.query import QueryResult, ScanRequest
from vecdb.core.records import Record, WriteResult
from vecdb.services.replica import ShardReplica
from vecdb.shard.marks import MarkResult
from vecdb.testing.checks import Judge
from vecdb.testing.cluster import Cluster
from vecdb.testing.linear import linearizable
from vecdb.testing.model import Model, Moment
from vecdb.testing.records import Read, RecordStep, value_in
from vecdb.testing.violation import Violation
from vecdb.testing.world import World


@dataclass(slots=True)
class RecordHistory:
    """What clients did to records and were told."""

    steps: dict[tuple[int, RecordId], list[RecordStep]] = field(default_factory=dict)
    told: dict[int, list[tuple[bytes, WriteResult]]] = field(default_factory=dict)
    """By group: tokens of acknowledged writes, with the answers."""
    furthest: dict[int, int] = field(default_factory=dict)
    """By group: the latest log index anybody was told of."""

    def step(self, group: int, one: RecordId, step: RecordStep) -> None:
        self.steps.setdefault((group, one), []).append(step)

    def acknowledge(self, group: int, token: bytes, result: WriteResult) -> None:
        self.told.setdefault(group, []).append((token, result))
        self.furthest[group] = max(self.furthest.get(group, 0), result.log_index)


class ShardModels:
    """What every shard must be, and judgements by it.  ``models``: by group; ``checked``: what was looked at."""

    def __init__(self, checked: Counter[str]) -> None:
        self.models: dict[int, Model] = {}
        self.checked = checked

    def model(self, group: int) -> Model:
        return self.models.setdefault(group, Model())

    def applied(self, node: str, group: int, replica: ShardReplica, log_index: int, command: bytes | None,
                outcome: object) -> None:
        """A replica has applied a command, or (None) installed a snapshot."""
        model = self.model(group)
        moment = model.at(log_index) if command is None else model.apply(log_index, command)
        who = f"{node}: group {group} at {log_index}"
        if command is not None:
            self._outcome(who, moment, outcome)
        found = replica.digest()
        if (found.log_index, found.records, found.digest) != (log_index, len(moment.records), moment.digest):
            raise Violation(f"{who}: {found}, not {len(moment.records)} records of {moment.digest}")
        self.checked["shard_states_checked"] += 1

    def _outcome(self, who: str, moment: Moment, outcome: object) -> None:
        expected: object = moment.outcome
        if moment.refused:
            if not isinstance(outcome, InvalidArgument | ShardSealed):
                raise Violation(f"{who}: a bad command did {outcome}")
        elif expected is None:
            if not isinstance(outcome, MarkResult) or (outcome.records, outcome.digest) != (
                    len(moment.records), moment.digest):
                raise Violation(f"{who}: the mark is {outcome}, not {len(moment.records)} records of {moment.digest}")
            self.checked["marks_checked"] += 1
        elif outcome != expected:
            raise Violation(f"{who}: did {outcome}, not {expected}"
                            f"{', which its token did before' if moment.repeated else ''}")
        self.checked["repetitions_checked"] += moment.repeated
        self.checked["outcomes_checked"] += 1

    def read(self, who: str, moment: Moment, read: Read, answer: object, whole: bool) -> None:
        """Hold an answer against the place it was given at; ``whole``: nothing was damaged there."""
        if read.kind == "fetch":
            assert isinstance(answer, list)
            self.fetched(who, moment, read.ids, answer)
        elif read.kind == "count":
            if answer != (expected := len(moment.matching(read.where))):
                raise Violation(f"{who}: {answer} records counted, not {expected}")
        else:
            assert isinstance(answer, QueryResult)
            self._found(who, moment, read, answer, whole)
        self.checked["reads_checked"] += 1

    def fetched(self, who: str, moment: Moment, ids: Sequence[RecordId], records: Sequence[Record]) -> None:
        expected = [one for one in ids if one in moment.records]
        if [record.id for record in records] != expected:
            raise Violation(f"{who}: fetched {[record.id for record in records]}, there are {expected}")
        for record in records:
            stored = moment.records[record.id]
            if record.metadata != stored.fields or record.vector is None or \
                    record.vector.astype("<f4").tobytes() != stored.vector:
                raise Violation(f"{who}: {record.id!r} is {record.metadata} {record.vector}, not {stored}")

    def _found(self, who: str, moment: Moment, read: Read, answer: QueryResult, whole: bool) -> None:
        assert read.request is not None
        if answer.missing and whole:
            raise Violation(f"{who}: {answer.missing} could not be searched, and nothing was damaged")
        if len(answer.matches) != len(read.request.vectors):
            raise Violation(f"{who}: {len(answer.matches)} answers to {len(read.request.vectors)} queries")
        for query, matches in enumerate(answer.matches):
            fault = moment.faults(read.request, query, matches, whole)
            if not fault and matches.metadata != [moment.records[one].fields for one in matches.ids]:
                fault = "metadata of something else"
            if fault:
                raise Violation(f"{who}: query {query} of {read.request}: {fault}")
            self.checked["answers_checked"] += 1

    def unreadable(self, who: str, error: VecdbError, whole: bool) -> None:
        """A read failed; nobody may say that what nobody damaged is damaged."""
        if isinstance(error, DataCorrupted) and whole:
            raise Violation(f"{who}: {error.message}, and nobody damaged anything")

    def marks(self, who: str, group: int, replica: ShardReplica) -> None:
        """What a replica remembers of marks is what the model was."""
        for log_index, mark in replica.marks().items():
            moment = self.model(group).at(log_index)
            if moment.outcome is not None or (mark.records, mark.digest) != (len(moment.records), moment.digest):
                raise Violation(f"{who}: remembers {mark}, there were {len(moment.records)} records of {moment.digest}")
            self.checked["marks_checked"] += 1


class ShardJudge(Judge, ShardModels):
    """Watches a cluster of shards."""

    def __init__(self, cluster: Cluster) -> None:
        ShardModels.__init__(self, cluster.world.happened)
        Judge.__init__(self, cluster)


def survived(judge: ShardModels, history: RecordHistory) -> None:
    """Every acknowledged write is in the log, once, and did what its client was told."""
    for group, told in history.told.items():
        model = judge.model(group)
        for token, result in told:
            at = model.tokens.get(token)
            if at is None:
                raise Violation(f"group {group}: {result} was acknowledged, and is not in the log")
            if model.at(at).outcome != result:
                raise Violation(f"group {group} at {at}: {result} was acknowledged, {model.at(at).outcome} was done")
            judge.checked["acknowledgements_checked"] += 1


def linear(world: World, history: RecordHistory) -> None:
    """What clients saw of each record is explained by some order of their calls."""
    for (group, one), steps in history.steps.items():
        if not linearizable(steps):
            lines = "\n".join(f"  {step}" for step in sorted(steps, key=lambda step: step.start))
            raise Violation(f"record {one!r} of group {group} is not linearizable:\n{lines}")
        world.happened["histories_checked"] += 1
        world.happened["operations_checked"] += len(steps)


def whole(judge: ShardModels, who: str, group: int, replica: ShardReplica) -> None:
    """Everything there is at a replica is the model's, record by record, and it verifies itself."""
    moment = judge.model(group).at(replica.position().log_index)
    service = replica.service
    judge.fetched(who, moment, sorted(moment.records, key=str),
                  service.fetch(sorted(moment.records, key=str), include_metadata=True, include_vectors=True))
    page = service.scan(ScanRequest(limit=3, include_vectors=True))
    seen = dict(zip(page.ids, page.metadata or (), strict=True))
    while page.cursor is not None:
        page = service.scan(ScanRequest(limit=3, after=page.cursor, include_vectors=True))
        seen.update(zip(page.ids, page.metadata or (), strict=True))
    if {one: value_in(fields) for one, fields in seen.items()} != {
            one: value_in(stored.fields) for one, stored in moment.records.items()}:
        raise Violation(f"{who}: scanned {sorted(map(str, seen))}, there are {sorted(map(str, moment.records))}")
    found = replica.verify()
    if not found["equal"]:
        raise Violation(f"{who}: {found}")
    judge.marks(who, group, replica)
    judge.checked["replicas_checked"] += 1
