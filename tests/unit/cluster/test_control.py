"""The control machine against a model, and its commands and rows against damage."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vecdb.cluster.control import (
    ControlState,
    Create,
    Refusal,
    apply,
    create,
    decode,
    drop,
    from_rows,
    machine,
    rows_of,
    sharding,
)
from vecdb.core.errors import (
    CollectionExists,
    CollectionNotFound,
    DataCorrupted,
    InvalidArgument,
    LimitExceeded,
    VecdbError,
)
from vecdb.core.schema import CollectionSchema, IndexSpec, Metric, VectorType

REPLICAS = ("n1/11", "n2/22", "n3/33")
names = st.sampled_from(["a", "b", "c", "d"])
keys = st.sampled_from([b"", b"k1", b"k2", b"k3", b"k4"])


def schema(name="a", dim=4):
    return CollectionSchema(name, dim)


class Machine(RuleBasedStateMachine):
    """A plain dictionary says what must come of each command; rows are kept as a store would."""

    def __init__(self):
        super().__init__()
        self.state, self.rows = ControlState(), {}
        self.model, self.groups, self.changes, self.done = {}, 0, 0, {}

    def _apply(self, command):
        before = self.state
        applied = apply(before, before.log_index + 2, before.term + 1, command)
        for key in applied.deletes:
            del self.rows[key]  # what is deleted was there
        self.rows.update(applied.puts)
        self.state = applied.state
        again = apply(before, before.log_index + 2, before.term + 1, command)
        assert repr(again) == repr(applied)
        return applied.outcome

    def _known(self, key, content):
        if not key or key not in self.done:
            return None
        content_then, outcome = self.done[key]
        return outcome if content_then == content else InvalidArgument

    def _check(self, outcome, key, content, expected):
        known = self._known(key, content)
        if known is not None:
            expected = known
        refused = isinstance(expected, type)
        if refused:
            assert type(outcome) is expected
        else:
            assert (outcome.name, *outcome.shards) == expected
        if known is None and key:
            self.done[key] = (content, expected)
            while len(self.done) > machine.MAX_KEYS_KEPT:
                del self.done[next(iter(self.done))]
        return known is None and not refused

    @rule(name=names, dim=st.integers(1, 3), key=keys)
    def create(self, name, dim, key):
        outcome = self._apply(create(schema(name, dim), REPLICAS, key))
        full = len(self.model) >= sharding.MAX_COLLECTIONS
        expected = CollectionExists if name in self.model else LimitExceeded if full else (name, self.groups + 1)
        if self._check(outcome, key, (name, dim), expected):
            self.groups += 1
            self.changes += 1
            self.model[name] = (self.groups, dim)

    @rule(name=names, key=keys)
    def drop(self, name, key):
        outcome = self._apply(drop(name, key))
        expected = (name, self.model[name][0]) if name in self.model else CollectionNotFound
        if self._check(outcome, key, name, expected):
            self.changes += 1
            del self.model[name]

    @rule(command=st.binary(max_size=40))
    def nonsense(self, command):
        assert isinstance(self._apply(command), VecdbError)

    @invariant()
    def agrees(self):
        state = self.state
        assert {name: (*one.shards, one.schema.dim) for name, one in state.collections.items()} == self.model
        groups = {name: group for name, (group, _) in self.model.items()}
        assert {one.name: one.group for one in state.shards.values()} == groups
        assert all(state.labelled(one.label) is one and state.only(one.name) is one for one in state.shards.values())
        assert (state.next_group, state.epoch) == (self.groups + 1, self.changes)
        assert {name: type(one.entry.error()) if isinstance(one.entry, Refusal) else (one.entry.name, *one.entry.shards)
                for name, one in state.keys.items()} == {key: outcome for key, (_, outcome) in self.done.items()}
        assert sorted(self.rows.items()) == (rows_of(state) if self.rows else [])
        assert from_rows(sorted(self.rows.items())) == state
        for group in range(1, self.groups + 3):
            held = group in {one for one, _ in self.model.values()}
            assert state.was_dropped(group) == (group <= self.groups and not held)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(machine, "MAX_KEYS_KEPT", 3)
    monkeypatch.setattr(sharding, "MAX_COLLECTIONS", 3)


Machine.TestCase.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)


class TestMachine(Machine.TestCase):
    """Run by pytest, with the small limits of the fixture."""


def filled():
    state = ControlState()
    for at, command in enumerate((create(schema("a"), REPLICAS, b"k1"), create(schema("b"), ("n2/2",)),
                                  drop("a", b"k2"), create(schema("a", 8), REPLICAS[:2]))):
        state = apply(state, at + 1, 1, command).state
    return state


def test_a_retry_is_answered_and_not_done_even_if_other_replicas_were_chosen():
    first = apply(ControlState(), 5, 1, create(schema(), REPLICAS, b"once"))
    again = apply(first.state, 6, 2, create(schema(), ("n4/1",), b"once"))
    assert again.outcome == first.outcome
    assert again.state.only("a").replicas == REPLICAS
    assert again.state.next_group == 2
    assert [key for key, _ in again.puts] == [b"s"]
    assert (again.state.log_index, again.state.term, again.state.epoch) == (6, 2, 1)
    gone = apply(again.state, 7, 2, drop("a", b"twice"))
    made = apply(gone.state, 8, 2, create(schema(), REPLICAS))
    assert apply(made.state, 9, 2, drop("a", b"twice")).outcome == gone.outcome
    assert "a" in made.state.collections
    assert isinstance(apply(made.state, 9, 2, drop("b", b"twice")).outcome, InvalidArgument)


def test_what_was_refused_under_a_key_stays_refused():
    """A command that was sent twice: one is refused, its caller told, things change; then the other comes."""
    made = apply(ControlState(), 1, 1, create(schema(), REPLICAS)).state
    refused = apply(made, 2, 1, create(schema(), REPLICAS, b"k"))
    assert isinstance(refused.outcome, CollectionExists)
    free = apply(refused.state, 3, 1, drop("a")).state
    assert isinstance(apply(free, 4, 1, create(schema(), REPLICAS, b"k")).outcome, CollectionExists)
    missing = apply(free, 4, 1, drop("a", b"d"))
    assert isinstance(missing.outcome, CollectionNotFound)
    anew = apply(missing.state, 5, 1, create(schema(), REPLICAS)).state
    late = apply(from_rows(rows_of(anew)), 6, 1, drop("a", b"d"))
    assert isinstance(late.outcome, CollectionNotFound)
    assert "a" in late.state.collections
    assert apply(late.state, 7, 1, drop("a", b"another")).outcome.shards == (2,)


@pytest.mark.parametrize("one", [
    CollectionSchema("x", 8, Metric.L2, VectorType.FLOAT16, IndexSpec(kind="hnsw", m=9), ("a.b", "c")),
    CollectionSchema("b.in-ary_1", 64, Metric.HAMMING, VectorType.BINARY),
])
def test_schemas_travel_whole(one):
    assert decode(create(one, REPLICAS, b"k")) == (Create(one, ((0, 1 << 64, REPLICAS),), 3), b"k")
    state = apply(ControlState(), 1, 1, create(one, REPLICAS)).state
    assert from_rows(rows_of(state)).collections[one.name].schema == one


@pytest.mark.parametrize("replicas", [
    (), ("n1",), ("n1/",), ("/1",), ("n1/-1",), ("n1/01",), (f"n1/{1 << 32}",), ("n1/1", "n1/2"), (7,), "n1/1",
    ("é" * 33 + "/1",), tuple(f"n{at}/1" for at in range(8)), ("a/b/1",), ("n\n/1",)])
def test_replicas_must_make_sense(replicas):
    outcome = apply(ControlState(), 1, 1, create(schema(), replicas)).outcome
    assert isinstance(outcome, InvalidArgument)
    assert apply(ControlState(), 1, 1, create(schema(), ("n1/0", f"{'x' * 64}/{(1 << 32) - 1}"))).outcome.shards == (1,)


@given(data=st.data())
def test_bytes_that_are_no_command_change_nothing_but_the_position(data):
    state = filled()
    good = data.draw(st.sampled_from([create(schema("new"), REPLICAS, b"key"), drop("b", b"key")]))
    at = data.draw(st.integers(0, len(good) - 1))
    bad = data.draw(st.sampled_from([good[:at], good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))])
                                     + good[at + 1:], good + b"x"]))
    applied = apply(state, 9, 9, bad)
    assert from_rows(rows_of(applied.state)) == applied.state
    refusal = refused(bad)  # a flipped bit may make another good command of it
    if refusal is not None:
        assert repr(applied.outcome) == repr(refusal)
        assert applied.state == replace(state, log_index=9, term=9)


def refused(command):
    try:
        decode(command)
    except VecdbError as error:
        return error
    return None


def test_versions_opcodes_and_fields_of_later_times_are_refused():
    good = create(schema(), REPLICAS)
    for bad in (bytes([3]) + good[1:], good[:1] + bytes([2]) + good[2:], good.replace(b'"replicas"', b'"replicaz"'),
                good[:3] + b'{"schema":' + b"[" * 100_000, drop("a")[:3] + b'{"name":"a","more":1}',
                drop("a")[:3] + b'["name"]', drop("a")[:3] + b'{"name":[1]}', bytes([2, 1, 65]) + b"k" * 70):
        assert isinstance(apply(ControlState(), 1, 1, bad).outcome, InvalidArgument)
    with pytest.raises(LimitExceeded):
        create(schema(), REPLICAS, b"k" * 65)


@given(data=st.data())
def test_damaged_rows_are_found(data):
    rows = rows_of(filled())
    at = data.draw(st.integers(0, len(rows) - 1))
    key, value = rows[at]
    damage = data.draw(st.sampled_from(["flip", "cut", "gone", "strayed", "old"]))
    if damage == "flip":
        where = data.draw(st.integers(0, len(value) - 1))
        flipped = bytes([value[where] ^ (1 << data.draw(st.integers(0, 7)))])
        rows[at] = (key, value[:where] + flipped + value[where + 1:])
    elif damage == "cut":
        rows[at] = (key, value[:data.draw(st.integers(0, len(value) - 1))])
    elif damage == "gone":
        del rows[at]
    elif damage == "strayed":
        rows[at] = (b"czz", rows[(at + 1) % len(rows)][1])
    else:
        earlier = dict(rows_of(apply(ControlState(), 1, 1, create(schema("a"), ("n9/9",))).state))
        rows = [(one, earlier[one] if one == b"ca" else body) for one, body in rows]
    with pytest.raises(DataCorrupted):
        from_rows(rows)


def test_no_rows_are_the_beginning():
    assert from_rows([]) == ControlState()
    assert not ControlState().was_dropped(1)


def test_loads_are_replicas_by_node():
    assert filled().loads() == {"n1": 1, "n2": 2}
