"""API keys in the control state: what one node makes lets callers in on all, and what it ends lets them in on none."""

import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.key_store import Clock, Disk
from vecdb.cluster.control import ControlState, apply
from vecdb.core.access import Grant, Role
from vecdb.core.errors import InvalidArgument, KeyNotFound, Unauthenticated, Unavailable, VecdbError
from vecdb.services import cluster_keys
from vecdb.services.cluster_keys import ClusterKeys
from vecdb.services.keys import KeyRing

READ = (Grant(Role.READ, ("docs",)),)


class Group:
    """A control group whose nodes apply when they are told to."""

    def __init__(self) -> None:
        self.log: list[bytes] = []
        self.away = False

    def propose(self, command: bytes) -> None:
        if self.away:
            raise Unavailable("nobody leads")
        outcome = apply(Node.at(self, len(self.log)), len(self.log) + 1, 1, command).outcome
        self.log.append(command)
        if isinstance(outcome, VecdbError):
            raise outcome


class Node:
    def __init__(self, group: Group, path: Path, clock: Clock) -> None:
        self.group, self.state, self.known = group, ControlState(), True
        self.ring = KeyRing(path, Disk().open, clock)
        self.keys = ClusterKeys(lambda: self.state.api_keys, lambda: self.known, self.change, self.learn, self.ring,
                                clock)

    @staticmethod
    def at(group: Group, count: int) -> ControlState:
        state = ControlState()
        for index, command in enumerate(group.log[:count], 1):
            state = apply(state, index, 1, command).state
        return state

    def learn(self) -> None:
        if self.group.away:
            raise Unavailable("nobody leads")
        for index, command in enumerate(self.group.log[self.state.log_index:], self.state.log_index + 1):
            self.state = apply(self.state, index, 1, command).state

    def change(self, command: bytes) -> None:
        self.group.propose(command)
        self.learn()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def nodes(tmp_path: Path, clock: Clock) -> tuple[Node, Node]:
    group = Group()
    return Node(group, tmp_path / "one", clock), Node(group, tmp_path / "two", clock)


def refusal(node: Node, secret: str) -> str:
    with pytest.raises(Unauthenticated) as refused:
        node.keys.principal(secret)
    return str(refused.value.fields["reason"])


def test_a_key_of_one_node_is_good_on_all_once_they_know_it(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    assert not one.keys.required
    key, secret = one.keys.create("ours", READ)
    assert one.keys.required
    assert one.keys.principal(secret).id == key.id
    assert refusal(two, secret) == "unknown"
    two.learn()
    assert two.keys.required
    assert two.keys.principal(secret).grants == READ
    assert [known.id for known in two.keys.list()] == [key.id] == [known.id for known in one.keys.list()]
    assert secret not in str(one.group.log), "only its hash is told to others"
    assert two.keys.get(key.id).name == "ours"


def test_a_revoked_key_is_good_nowhere_from_the_moment_a_node_knows(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    key, secret = one.keys.create("ours", READ)
    two.learn()
    assert two.keys.principal(secret).id == key.id, "and it is remembered as good"
    assert one.keys.revoke(key.id).revoked
    assert refusal(one, secret) == "revoked"
    two.learn()
    assert refusal(two, secret) == "revoked"
    assert two.keys.required, "the doors stay shut"
    assert two.keys.revoke(key.id).revoked, "once more does nothing"
    assert two.keys.good() == 0


def test_a_revocation_holds_where_it_was_asked_for_though_nobody_leads(nodes: tuple[Node, Node]) -> None:
    one, _ = nodes
    key, secret = one.keys.create("ours", READ)
    one.keys.principal(secret)
    one.group.away = True
    with pytest.raises(Unavailable):
        one.keys.revoke(key.id)
    assert refusal(one, secret) == "revoked"
    one.group.away = False
    assert one.keys.revoke(key.id).revoked


def test_a_revocation_does_not_wait_for_one_that_waits_for_the_cluster(nodes: tuple[Node, Node],
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = nodes
    (first, _), (second, secret) = one.keys.create("ours", READ), one.keys.create("theirs", READ)
    held, go = threading.Event(), threading.Event()

    def nobody_leads() -> None:
        held.set()
        go.wait(60.0)
        raise Unavailable("nobody leads")

    def revoke() -> None:
        with suppress(Unavailable):
            keys.revoke(first.id)

    keys = ClusterKeys(lambda: one.state.api_keys, lambda: True, one.change, nobody_leads, one.ring, Clock())
    monkeypatch.setattr(cluster_keys, "TURN_S", 0.01)
    assert keys.principal(secret).id == second.id
    other = threading.Thread(target=revoke)
    other.start()
    try:
        assert held.wait(60.0)
        with pytest.raises(Unavailable) as busy:
            keys.revoke(second.id)
        assert busy.value.fields["retry_after_s"] > 0
        with pytest.raises(Unauthenticated):
            keys.principal(secret)
    finally:
        go.set()
        other.join(60.0)


def test_rotation_leaves_the_old_secret_for_a_while(nodes: tuple[Node, Node], clock: Clock) -> None:
    one, two = nodes
    key, first = one.keys.create("ours", READ)
    _, second = two.keys.rotate(key.id, 60.0)
    one.learn()
    assert {one.keys.principal(secret).id for secret in (first, second)} == {key.id}
    clock.now += 61.0
    assert refusal(one, first) == "rotated"
    _, third = one.keys.rotate(key.id)
    two.learn()
    assert refusal(two, second) == "unknown"
    assert two.keys.principal(third).id == key.id
    one.keys.revoke(key.id)
    with pytest.raises(InvalidArgument, match="revoked"):
        two.keys.rotate(key.id)
    with pytest.raises(KeyNotFound):
        two.keys.rotate("abcdefgh2345")


def test_keys_end(nodes: tuple[Node, Node], clock: Clock) -> None:
    one, two = nodes
    _, secret = one.keys.create("ours", READ, 10.0)
    two.learn()
    two.keys.principal(secret)
    clock.now += 11.0
    assert refusal(two, secret) == "expired"


def test_keys_of_a_node_s_own_directory_stay_good_there(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    old, secret = one.ring.create("before there was a cluster", READ)
    assert one.keys.required
    assert not two.keys.required
    assert one.keys.principal(secret).id == one.keys.check(secret).id == old.id
    assert refusal(two, secret) == "unknown"
    key, _ = one.keys.create("ours", READ)
    assert {known.id for known in one.keys.list()} == {old.id, key.id}
    assert one.keys.get(old.id).name == "before there was a cluster"
    _, rotated = one.keys.rotate(old.id)
    assert one.keys.principal(rotated).id == old.id
    assert one.keys.revoke(old.id).revoked
    assert refusal(one, rotated) == "revoked"
    assert old.id not in str(one.group.log)


def test_a_node_that_knows_nothing_yet_says_so(nodes: tuple[Node, Node]) -> None:
    one, _ = nodes
    one.keys.check_known()
    one.known = False
    with pytest.raises(Unavailable, match="does not know the keys"):
        one.keys.check_known()
    with pytest.raises(Unavailable, match=r"^n2 does not answer; nor n3; until .* does not know the keys"):
        one.keys.check_known(lambda: ["n2 does not answer", "nor n3"])
    for unfounded in (True, False):
        with pytest.raises(Unavailable) as refused:
            one.keys.check_known(unfounded=lambda told=unfounded: told)
        assert bool(refused.value.fields.get("unfounded")) == unfounded
