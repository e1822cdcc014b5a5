"""Collections that a job loads before anybody sees them."""

from vecdb.cluster import control
from vecdb.cluster.control import ControlState, apply, from_rows, rows_of
from vecdb.cluster.placement import ranges
from vecdb.core.cluster import JobState, ShardState
from vecdb.core.errors import CollectionExists, CollectionNotFound, InvalidArgument, VecdbError
from vecdb.core.schema import CollectionSchema

SCHEMA = CollectionSchema(name="docs", dim=4)
PLANS = [(lo, hi, ["n1/1", "n2/1"]) for lo, hi in ranges(3)]


class Machine:
    """The state, its rows beside it, and the log."""

    def __init__(self) -> None:
        self.state = ControlState()
        self.rows: dict[bytes, bytes] = {}

    def do(self, command: bytes) -> object:
        done = apply(self.state, self.state.log_index + 1, 1, command)
        for key in done.deletes:
            self.rows.pop(key)
        self.rows.update(done.puts)
        self.state = done.state
        assert from_rows(sorted(self.rows.items())) == self.state
        assert sorted(self.rows.items()) == rows_of(self.state)
        return done.outcome

    def job(self) -> int:
        return self.do(control.job_put("restore", "snap", {}, at_s=1.0)).id  # type: ignore[attr-defined]


def begun() -> tuple[Machine, int]:
    machine = Machine()
    job = machine.job()
    machine.do(control.collection_load(job, SCHEMA, PLANS, 2, "tenant"))
    return machine, job


def is_error(outcome: object, kind: type[VecdbError]) -> bool:
    return isinstance(outcome, kind)


def test_nobody_sees_it_until_it_is_ready() -> None:
    machine, job = begun()
    state = machine.state
    assert list(state.collections) == []
    entry = state.loading["docs"]
    assert [state.shards[group].state for group in entry.shards] == [ShardState.LOADING] * 3
    assert state.labelled(f"docs@{entry.shards[1]}").group == entry.shards[1]
    assert state.loads() == {"n1": 3, "n2": 3}
    for command in (control.drop("docs"), control.replication("docs", 1), control.shards_add(job, "docs", PLANS)):
        assert is_error(machine.do(command), CollectionNotFound)
    assert is_error(machine.do(control.create(SCHEMA, ["n1/1"])), CollectionExists)
    assert is_error(machine.do(control.shards_forget(entry.shards[:1])), InvalidArgument)
    before = machine.state.epoch
    machine.do(control.collection_ready(job, "docs"))
    state = machine.state
    assert state.epoch > before
    assert dict(state.loading) == {}
    assert state.get("docs").shard_key == "tenant"
    assert [one.state for one in state.of("docs")] == [ShardState.ACTIVE] * 3
    assert [(one.lo, one.hi) for one in state.of("docs")] == ranges(3)


def test_every_command_may_come_twice() -> None:
    machine, job = begun()
    first = machine.state.loading["docs"]
    assert machine.do(control.collection_load(job, SCHEMA, PLANS[:1] + PLANS[1:], 2, "tenant")) == first
    made = machine.do(control.collection_ready(job, "docs"))
    assert machine.do(control.collection_ready(job, "docs")) == made
    assert is_error(machine.do(control.collection_abandon(job, "docs")), CollectionExists)
    assert machine.state.get("docs") == made


def test_only_its_job_ends_it() -> None:
    machine, job = begun()
    other = machine.job()
    entry = machine.state.loading["docs"]
    assert is_error(machine.do(control.collection_load(other, SCHEMA, PLANS, 2)), CollectionExists)
    assert is_error(machine.do(control.collection_ready(other, "docs")), InvalidArgument)
    assert machine.do(control.collection_abandon(other, "docs")) == ()
    assert machine.do(control.collection_abandon(job, "docs")) == entry.groups
    assert (dict(machine.state.loading), dict(machine.state.shards)) == ({}, {})
    assert all(machine.state.was_dropped(group) for group in entry.groups)
    assert machine.do(control.collection_abandon(job, "docs")) == ()
    assert is_error(machine.do(control.collection_ready(job, "docs")), InvalidArgument)


def test_a_job_that_has_ended_begins_and_finishes_nothing() -> None:
    machine, job = begun()
    machine.do(control.job_update(job, state=JobState.FAILED, at_s=2.0))
    assert is_error(machine.do(control.collection_ready(job, "docs")), InvalidArgument)
    other = CollectionSchema(name="other", dim=4)
    assert is_error(machine.do(control.collection_load(job, other, PLANS, 2)), InvalidArgument)
    assert len(machine.do(control.collection_abandon(job, "docs"))) == 3  # type: ignore[arg-type]


def test_a_name_that_is_taken_is_refused() -> None:
    machine = Machine()
    machine.do(control.create(SCHEMA, ["n1/1"]))
    job = machine.job()
    assert is_error(machine.do(control.collection_load(job, SCHEMA, PLANS, 2)), CollectionExists)
    assert list(machine.state.collections) == ["docs"]
