"""All commands of the control group against a plain model: dictionaries, and sums of ranges."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vecdb.cluster import control
from vecdb.cluster.control import (
    ApiKeyEntry,
    ControlState,
    NodeEntry,
    Refusal,
    TokenEntry,
    administration,
    apply,
    create_shards,
    decode,
    from_rows,
    machine,
    rows_of,
    sharding,
)
from vecdb.cluster.placement import ranges, shards_for
from vecdb.core.access import Grant, Role
from vecdb.core.cluster import HASH_SPACE, JobState, NodeState, ShardState
from vecdb.core.cluster import Role as NodeRole
from vecdb.core.errors import InvalidArgument, KeyNotFound, LimitExceeded, VecdbError
from vecdb.core.schema import CollectionSchema

QUARTER = HASH_SPACE // 4
NAMES = ("a", "b")
NODES = ("n1", "n2", "n3", "n4")
names, nodes = st.sampled_from(NAMES), st.sampled_from(NODES)
cuts = st.sets(st.sampled_from([1, 2, 3]))
ids = st.sampled_from(["x", "y", "z"])


def plans(bounds, replicas=("n1/1",)):
    return [(lo * QUARTER, hi * QUARTER, replicas) for lo, hi in pairwise(bounds)]


class Machine(RuleBasedStateMachine):
    """What is refused is refused here too; what is done is done to plain dictionaries."""

    def __init__(self):
        super().__init__()
        self.state, self.rows, self.keys = ControlState(), {}, 0
        self.next_group, self.epoch = 1, 0
        self.shards = {}
        """By group: collection, lo, hi, state, job, desired."""
        self.factors, self.nodes, self.jobs, self.tokens, self.api_keys, self.settings = {}, {}, {}, set(), {}, {}

    def _apply(self, make, *, refused=False, moved=False):
        """``make`` of a key; refused or not as expected, the same under its key again, and rows as a store has them."""
        self.keys += 1
        key = b"" if self.keys % 3 == 0 else b"key%d" % self.keys
        command = make(key)
        before = self.state
        applied = self._take(before, command)
        if key:
            again = apply(self.state, self.state.log_index + 1, 1, command)
            assert repr(again.outcome) == repr(applied.outcome)
            assert [row for row, _ in again.puts] == [b"s"]
            assert not again.deletes
            assert again.state == replace(self.state, log_index=self.state.log_index + 1)
        assert isinstance(applied.outcome, VecdbError) == bool(refused), applied.outcome
        if refused:
            assert replace(self.state, keys=before.keys, digest=before.digest, log_index=before.log_index,
                           term=before.term) == before
        elif moved:
            self.epoch += 1
        for kind in ("collections", "shards", "nodes", "jobs", "tokens", "api_keys", "settings"):
            if getattr(before, kind) == getattr(self.state, kind):
                assert getattr(before, kind) is getattr(self.state, kind)
        return applied.outcome

    def _take(self, before, command):
        applied = apply(before, before.log_index + 2, 1, command)
        for key in applied.deletes:
            del self.rows[key]  # what is deleted was there
        self.rows.update(applied.puts)
        self.state = applied.state
        return applied

    # --- shards -----------------------------------------------------------------------------------

    def _of(self, name, state=None):
        return sorted((one["lo"], group) for group, one in self.shards.items()
                      if one["name"] == name and state in (None, one["state"]))

    def _make(self, name, bounds, state, job):
        groups = []
        for lo, hi, _ in plans(bounds):
            self.shards[self.next_group] = {"name": name, "lo": lo, "hi": hi, "state": state, "job": job,
                                            "desired": {"n1"}}
            groups.append(self.next_group)
            self.next_group += 1
        return groups

    @rule(name=names, cuts=cuts, factor=st.integers(1, 3), shard_key=st.sampled_from([None, "tenant.id"]))
    def create(self, name, cuts, factor, shard_key):
        bounds = [0, *sorted(cuts), 4]
        full = len(self.shards) + len(bounds) - 1 > sharding.MAX_SHARDS
        refused = name in self.factors or full
        outcome = self._apply(lambda key: create_shards(CollectionSchema(name, 4), plans(bounds), factor, shard_key,
                                                        key), refused=refused, moved=True)
        if not refused:
            assert outcome.shards == tuple(self._make(name, bounds, "active", 0))
            assert outcome.shard_key == shard_key
            self.factors[name] = factor

    @rule(name=names)
    def drop(self, name):
        refused = name not in self.factors
        self._apply(lambda key: control.drop(name, key), refused=refused, moved=True)
        if not refused:
            del self.factors[name]
            self.shards = {group: one for group, one in self.shards.items() if one["name"] != name}

    @rule(group=st.integers(1, 12), wanted=st.sets(nodes, min_size=1))
    def place(self, group, wanted):
        one = self.shards.get(group)
        refused = one is None or one["state"] == "retired" or any(
            self.nodes.get(node, ("left",))[0] == "left" or self.nodes[node][1] == "coordinator"
            for node in wanted - one["desired"])
        self._apply(lambda key: control.place(group, wanted, key), refused=refused,
                    moved=not refused and wanted != one["desired"])
        if not refused:
            one["desired"] = wanted

    @rule(name=names, factor=st.integers(1, 3))
    def replication(self, name, factor):
        refused = name not in self.factors
        self._apply(lambda key: control.replication(name, factor, key), refused=refused,
                    moved=not refused and self.factors[name] != factor)
        if not refused:
            self.factors[name] = factor

    @rule(job=st.integers(1, 4), name=names, lo=st.integers(0, 3), width=st.integers(1, 4), cuts=cuts)
    def shards_add(self, job, name, lo, width, cuts):
        hi = min(4, lo + width)
        bounds = [lo, *sorted(one for one in cuts if lo < one < hi), hi]
        active = [self.shards[group] for _, group in self._of(name, "active")]
        begin, end = lo * QUARTER, hi * QUARTER
        refused = (name not in self.factors or self.jobs.get(job, "done") in ("done", "failed", "cancelled")
                   or begin not in {one["lo"] for one in active} or end not in {one["hi"] for one in active}
                   or any(self.shards[group]["lo"] < end and begin < self.shards[group]["hi"]
                          for _, group in self._of(name, "loading"))
                   or len(self.shards) + len(bounds) - 1 > sharding.MAX_SHARDS)
        groups = self._apply(lambda key: control.shards_add(job, name, plans(bounds), key), refused=refused,
                             moved=True)
        if not refused:
            assert groups == tuple(self._make(name, bounds, "loading", job))

    @precondition(lambda self: any(one["state"] == "loading" for one in self.shards.values()))
    @rule(data=st.data())
    def shards_switch(self, data):
        """What belongs together, or nearly."""
        one = data.draw(st.sampled_from(sorted(group for group, one in self.shards.items()
                                               if one["state"] == "loading")))
        job, name = self.shards[one]["job"], self.shards[one]["name"]
        activate = {group for _, group in self._of(name, "loading") if self.shards[group]["job"] == job}
        begin, end = min(self.shards[g]["lo"] for g in activate), max(self.shards[g]["hi"] for g in activate)
        retire = {group for _, group in self._of(name, "active")
                  if begin <= self.shards[group]["lo"] and self.shards[group]["hi"] <= end}
        spoil = data.draw(st.sampled_from(["no", "no", "no", "job", "fewer", "more"]))
        if spoil == "fewer":
            activate = set(sorted(activate)[1:]) or activate | retire
        elif spoil == "more":
            others = set(self.shards) - retire
            retire = retire | {data.draw(st.sampled_from(sorted(others)))}
        elif spoil == "job":
            job += 1
        good = spoil == "no" and self.jobs[job] not in ("done", "failed", "cancelled") \
            and self._cover(activate) == self._cover(retire)
        command = [job, name, retire, activate]
        self._apply(lambda key: control.shards_switch(*command, key), refused=not good, moved=True)
        if good:
            for group in retire:
                self.shards[group].update(state="retired", job=job)
            for group in activate:
                self.shards[group]["state"] = "active"
            self._apply(lambda key: control.shards_switch(*command, key))  # done again: nothing

    def _cover(self, groups):
        return sorted((at, 1) for group in groups for at in range(self.shards[group]["lo"] // QUARTER,
                                                                   self.shards[group]["hi"] // QUARTER))

    @rule(groups=st.sets(st.integers(1, 12), min_size=1, max_size=4))
    def shards_forget(self, groups):
        refused = any(group >= self.next_group or self.shards.get(group, {}).get("state") == "active"
                      for group in groups)
        gone = sorted(group for group in groups if group in self.shards)
        outcome = self._apply(lambda key: control.shards_forget(groups, key), refused=refused, moved=bool(gone))
        if not refused:
            assert outcome == tuple(gone)
            for group in gone:
                del self.shards[group]

    # --- nodes ------------------------------------------------------------------------------------

    @rule(name=nodes, role=st.sampled_from(list(NodeRole)), zone=st.sampled_from(["", "z1"]), at=st.integers(1, 9))
    def node_put(self, name, role, zone, at):
        before = self.nodes.get(name)
        live = sum(one[0] != "left" for one in self.nodes.values())
        alive = before is not None and before[0] != "left"
        refused = not alive and ((before is not None and at <= before[2]) or live >= administration.MAX_CLUSTER_NODES)
        self._apply(lambda key: control.node_put(NodeEntry(name, "h:1", role=role, zone=zone, joined_s=at,
                                                           state=NodeState.DRAINED), key), refused=refused)
        if not refused:
            self.nodes[name] = (before[0], role.value, before[2], zone) if alive else ("active", role.value, at, zone)

    @rule(name=nodes, state=st.sampled_from(list(NodeState)))
    def node_state(self, name, state):
        before = self.nodes.get(name, ("left",))
        refused = before[0] == "left" or state is NodeState.LEFT
        self._apply(lambda key: control.node_state(name, state, at_s=3.0, key=key), refused=refused)
        if not refused:
            self.nodes[name] = (state.value, *before[1:])

    @rule(name=nodes)
    def node_remove(self, name):
        before = self.nodes.get(name)
        held = any(name in one["desired"] and one["state"] != "retired" for one in self.shards.values())
        refused = before is None or (before[0] != "left" and held)
        self._apply(lambda key: control.node_remove(name, at_s=4.0, key=key), refused=refused)
        if not refused and before[0] != "left":
            left = sorted(one for one, known in self.nodes.items() if known[0] == "left")
            for one in left[:max(0, len(left) + 1 - administration.MAX_CLUSTER_NODES)]:
                del self.nodes[one]
            self.nodes[name] = ("left", *before[1:])

    # --- jobs -------------------------------------------------------------------------------------

    @rule(name=names)
    def job_put(self, name):
        full = sum(one not in ("done", "failed", "cancelled") for one in self.jobs.values()) >= 3
        made = self._apply(lambda key: control.job_put("split", name, {"at": [1]}, at_s=5.0, key=key), refused=full)
        if not full:
            assert made.id == self.state.next_job - 1
            assert made.args == {"at": [1]}
            self.jobs[made.id] = "waiting"

    @rule(id=st.integers(1, 6), state=st.sampled_from(list(JobState)), done=st.integers(0, 9))
    def job_update(self, id, state, done):
        before = self.jobs.get(id, "done")
        refused = before in ("done", "failed", "cancelled")
        self._apply(lambda key: control.job_update(id, state=state, phase="copy", done=done, total=9, unit="records",
                                                   data={"from": done}, at_s=6.0, key=key), refused=refused)
        if not refused:
            self.jobs[id] = "cancelling" if before == "cancelling" and not state.ended else state.value
            ended = sorted(one for one, state in self.jobs.items() if state in ("done", "failed", "cancelled"))
            if self.jobs[id] in ("done", "failed", "cancelled"):
                for one in [one for one in ended if one != id][:max(0, len(ended) - administration.MAX_JOBS_KEPT)]:
                    del self.jobs[one]

    @rule(id=st.integers(1, 6))
    def job_cancel(self, id):
        before = self.jobs.get(id)
        self._apply(lambda key: control.job_cancel(id, at_s=7.0, key=key), refused=before is None)
        if before in ("waiting", "running"):
            self.jobs[id] = "cancelling"

    # --- tokens, keys and settings ----------------------------------------------------------------

    @rule(id=ids)
    def token_put(self, id):
        refused = id in self.tokens or len(self.tokens) >= administration.MAX_JOIN_TOKENS
        self._apply(lambda key: control.token_put(TokenEntry(id, "ab", "cd", roles=(NodeRole.SHARD,)), key),
                    refused=refused)
        if not refused:
            self.tokens.add(id)

    @rule(id=ids)
    def token_revoke(self, id):
        self._apply(lambda key: control.token_revoke(id, key))
        self.tokens.discard(id)

    @rule(id=ids, name=names)
    def api_key_put(self, id, name):
        refused = self.api_keys.get(id, ("", 0))[1] or (
            id not in self.api_keys and len(self.api_keys) >= administration.MAX_KEYS)
        self._apply(lambda key: control.api_key_put(ApiKeyEntry(id, name, (Grant(Role.READ, ("a*",)),),
                                                                (("00", "ff", 0.0),)), at_s=8.0, key=key),
                    refused=refused)
        if not refused:
            self.api_keys[id] = (name, 0)

    @rule(id=ids)
    def api_key_revoke(self, id):
        refused = id not in self.api_keys
        outcome = self._apply(lambda key: control.api_key_revoke(id, at_s=9.0, key=key), refused=refused)
        if refused:
            assert isinstance(outcome, KeyNotFound)
        else:
            self.api_keys[id] = (self.api_keys[id][0], 1)

    @rule(name=ids, value=st.sampled_from([None, 1, 2.5, "word", False]))
    def setting_put(self, name, value):
        refused = value is not None and name not in self.settings and \
            len(self.settings) >= administration.MAX_CLUSTER_SETTINGS
        self._apply(lambda key: control.setting_put(name, value, key), refused=refused)
        if value is None:
            self.settings.pop(name, None)
        elif not refused:
            self.settings[name] = value

    @rule()
    def restart(self):
        """From the rows, as they are in a store."""
        self.state = from_rows(sorted(self.rows.items()))

    # --- always -----------------------------------------------------------------------------------

    @invariant()
    def agrees(self):
        state = self.state
        assert (state.next_group, state.epoch) == (self.next_group, self.epoch)
        assert {name: one.replication_factor for name, one in state.collections.items()} == self.factors
        assert {group: (one.name, one.lo, one.hi, one.state.value, one.job, set(one.desired))
                for group, one in state.shards.items()} == {
                    group: (one["name"], one["lo"], one["hi"], one["state"], one["job"], one["desired"])
                    for group, one in self.shards.items()}
        assert {name: (one.state.value, one.role.value, one.joined_s, one.zone) for name, one in state.nodes.items()
                } == self.nodes
        assert {id: one.state.value for id, one in state.jobs.items()} == self.jobs
        assert set(state.tokens) == self.tokens
        assert {id: (one.name, int(bool(one.revoked_s))) for id, one in state.api_keys.items()} == self.api_keys
        assert dict(state.settings) == self.settings

    @invariant()
    def every_hash_is_answered_by_one_shard(self):
        for name in self.factors:
            shards = self.state.of(name)
            assert [one.lo for one in shards] == [0, *(one.hi for one in shards[:-1])]
            assert shards[-1].hi == HASH_SPACE
            assert all(one.state is ShardState.ACTIVE for one in shards)
            for one in self.state.all_of(name):
                assert self.state.labelled(one.label) is one

    @invariant()
    def rows_are_the_state(self):
        assert sorted(self.rows.items()) == (rows_of(self.state) if self.rows else [])
        again = from_rows(sorted(self.rows.items()))
        assert again == self.state
        assert {name: type(one.entry) for name, one in again.keys.items()} == {
            name: type(one.entry) for name, one in self.state.keys.items()}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(machine, "MAX_KEYS_KEPT", 3)
    monkeypatch.setattr(sharding, "MAX_SHARDS", 9)
    for limit, most in (("MAX_CLUSTER_NODES", 3), ("MAX_JOBS_OPEN", 3), ("MAX_JOBS_KEPT", 2), ("MAX_JOIN_TOKENS", 2),
                        ("MAX_KEYS", 2), ("MAX_CLUSTER_SETTINGS", 2)):
        monkeypatch.setattr(administration, limit, most)


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class TestMachine(Machine.TestCase):
    """Run by pytest, with the small limits of the fixture."""


EVERY = [
    create_shards(CollectionSchema("docs", 4), plans([0, 1, 4]), 2, "tenant", b"k"), control.drop("docs", b"k"),
    control.node_put(NodeEntry("n1", "h:1", capacity=2.0, version="1.2"), b"n"),
    control.node_state("n1", NodeState.DRAINING, at_s=1.0), control.node_remove("n1", at_s=1.0),
    control.token_put(TokenEntry("t", "ab", "cd", 5.0)), control.token_revoke("t"),
    control.api_key_put(ApiKeyEntry("k", "n", (Grant(Role.ADMIN),), (("ab", "cd", 0.0),)), at_s=1.0),
    control.api_key_revoke("k", at_s=1.0), control.job_put("drain", "n1", {}, at_s=1.0, key=b"j"),
    control.job_update(1, state=JobState.RUNNING, data={"a": 1}), control.job_cancel(1), control.place(1, ["n1"]),
    control.replication("docs", 3), control.shards_add(1, "docs", plans([0, 1])),
    control.shards_switch(1, "docs", [1], [2, 3]), control.shards_forget([1, 2]), control.setting_put("x", 1.5),
]


def filled():
    """Something of everything."""
    state = ControlState()
    for at, command in enumerate([*(EVERY[at] for at in (0, 2, 5, 7, 9, 17)),
                                  control.shards_add(1, "docs", plans([0, 1]))]):
        applied = apply(state, at + 1, 1, command)
        assert not isinstance(applied.outcome, VecdbError)
        state = applied.state
    return state


@given(data=st.data())
@settings(max_examples=600, deadline=None)
def test_damaged_commands_are_refused_or_are_other_commands(data):
    """Whatever comes, apply ends with a state that is written as it is read."""
    state = filled()
    good = data.draw(st.sampled_from(EVERY))
    at = data.draw(st.integers(0, len(good) - 1))
    what = data.draw(st.sampled_from(["cut", "byte", "digit", "opcode"]))
    if what == "cut":
        bad = good[:at]
    elif what == "opcode":
        bad = bytes([data.draw(st.integers(0, 255)), data.draw(st.integers(1, 3))]) + good[2:]
    elif what == "byte":
        bad = good[:at] + bytes([data.draw(st.integers(0, 255))]) + good[at + 1:]
    else:
        word = data.draw(st.sampled_from([b"1", b'"n1"', b"0.0", b"1.0", b"[]", b"{}", b'"docs"']))
        new = data.draw(st.sampled_from([b"-1", b"1e400", b"null", b'"\\u0000"', b"[[]]", b"true", b"9" * 30,
                                         b'{"a":{}}', b"18446744073709551615"]))
        bad = good.replace(word, new, data.draw(st.integers(1, 3)))
    applied = apply(state, 99, 9, bad)
    assert from_rows(rows_of(applied.state)) == applied.state
    if not is_command(bad):
        assert isinstance(applied.outcome, InvalidArgument)
        assert applied.state == replace(state, log_index=99, term=9)


def is_command(data):
    try:
        decode(data)
    except InvalidArgument:
        return False
    return True


def test_commands_are_known_by_number_for_good():
    assert [one[0] for one in EVERY] == list(range(1, 19))
    assert {one[0]: one[1] for one in EVERY} == {**dict.fromkeys(range(1, 19), 2), 2: 1}


def test_clock_readings_are_no_part_of_what_was_asked():
    state = apply(ControlState(), 1, 1, control.job_put("drain", "n1", {}, at_s=1.0, key=b"j")).state
    again = apply(state, 2, 1, control.job_put("drain", "n1", {}, at_s=2.0, key=b"j"))
    assert again.outcome == state.jobs[1]
    other = apply(state, 2, 1, control.job_put("drain", "n2", {}, at_s=2.0, key=b"j"))
    assert isinstance(other.outcome, InvalidArgument)


def test_refusals_keep_what_they_say():
    error = LimitExceeded("shards", "too many", got=3, limit=[1, "x"])
    found = Refusal.of(error).error()
    assert (type(found), found.message, found.fields) == (LimitExceeded, error.message, error.fields)


def test_the_oldest_commands_that_nodes_read_are_what_the_cluster_reads():
    state = ControlState()
    assert state.commands is None
    for at, reads in enumerate((3, 2, 4)):
        state = apply(state, at + 1, 1, control.node_put(NodeEntry(f"n{at}", "h:1", commands=reads))).state
    assert state.commands == 2
    assert apply(state, 9, 1, control.node_remove("n1")).state.commands == 3


def test_dead_tokens_and_keys_make_room():
    state = ControlState()
    dead = ApiKeyEntry("k0", "n", (Grant(Role.READ),), (("ab", "cd", 0.0),), expires_s=10.0)
    late = 10.0 + administration.KEPT_DEAD_S + 1
    for at, command in enumerate([
            control.api_key_put(dead), control.api_key_put(replace(dead, id="k1", expires_s=0.0)),
            control.token_put(TokenEntry("t0", "ab", "cd", 10.0)), control.token_put(TokenEntry("t1", "ab", "cd"))]):
        state = apply(state, at + 1, 1, command).state
    for at_s, room in ((late - 2, False), (late, True)):
        applied = apply(state, 9, 1, control.api_key_put(replace(dead, id="k2"), at_s=at_s))
        assert isinstance(applied.outcome, ApiKeyEntry) == room
    assert sorted(applied.state.api_keys) == ["k1", "k2"]
    for made_s, room in ((10.0, False), (11.0, True)):
        applied = apply(state, 9, 1, control.token_put(TokenEntry("t2", "ab", "cd", created_s=made_s)))
        assert isinstance(applied.outcome, TokenEntry) == room
    assert sorted(applied.state.tokens) == ["t1", "t2"]


def test_hashes_are_divided_and_shards_suit_what_is_expected():
    for count in (1, 2, 3, 7, 1_024):
        found = ranges(count)
        assert len(found) == count
        assert [lo for lo, _ in found] == [0, *(hi for _, hi in found[:-1])]
        assert found[-1][1] == HASH_SPACE
        assert max(hi - lo for lo, hi in found) - min(hi - lo for lo, hi in found) <= 1
    assert [shards_for(records, 3) for records in (0, 4_999_999, 5_000_000, 10**7, 10**8, 10**12)] == [
        1, 1, 2, 3, 10, 1_024]
    assert shards_for(10**9, 300) == 300
