"""Tokens, and what is asked of a node before it is let in."""

from dataclasses import replace
from random import Random

import pytest

from vecdb.cluster.control import NodeEntry, TokenEntry
from vecdb.cluster.joining import (
    TOKEN,
    Candidate,
    check_candidate,
    check_name_free,
    check_room,
    check_token,
    check_version,
    make_token,
)
from vecdb.core.cluster import MAX_CLUSTER_NODES, NodeState, Role
from vecdb.core.errors import InvalidArgument, JoinRefused

ONE = Candidate("s1", 7, "s1:7702", "s1:7700", "s1:7701", Role.SHARD, "rack-1", 2.0, "1.4.0", 2)


def made(**more: float) -> tuple[TokenEntry, str]:
    return make_token(Random(1).randbytes, 1_000.0, **more)


def test_a_token_is_good_for_who_has_it_and_its_secret_is_not_kept() -> None:
    entry, token = made()
    assert TOKEN.fullmatch(token)
    assert token.rpartition("_")[2] not in str(entry.to_json())
    assert check_token(token, {entry.id: entry}, Role.SHARD, 1e12) is entry
    assert TokenEntry.from_json(entry.to_json()) == entry


@pytest.mark.parametrize("wrong", ["", "vdj_", "vdj_aaaaaaaaaaaa_" + "a" * 52, "x" * 100_000, "vdb_abc", "vdj_é"])
def test_no_such_token(wrong: str) -> None:
    entry, _ = made()
    with pytest.raises(JoinRefused) as refused:
        check_token(wrong, {entry.id: entry}, Role.SHARD, 0.0)
    assert refused.value.reason == "token"


def test_a_wrong_secret_of_a_known_id_is_told_apart_from_nothing() -> None:
    entry, token = made()
    other = token[:-1] + ("a" if token[-1] != "a" else "b")
    told = []
    for tokens in ({entry.id: entry}, {}):
        with pytest.raises(JoinRefused) as refused:
            check_token(other, tokens, Role.SHARD, 0.0)
        told.append(refused.value.message)
    assert told[0] == told[1]


def test_tokens_end_and_are_for_roles() -> None:
    entry, token = make_token(Random(2).randbytes, 1_000.0, 60.0, [Role.SHARD, Role.SHARD])
    assert check_token(token, {entry.id: entry}, Role.SHARD, 1_059.0) is entry
    with pytest.raises(JoinRefused, match="expired") as refused:
        check_token(token, {entry.id: entry}, Role.SHARD, 1_060.0)
    assert refused.value.reason == "token_expired"
    for role in (Role.BOTH, Role.COORDINATOR):
        with pytest.raises(JoinRefused, match=f"shard, not {role}") as refused:
            check_token(token, {entry.id: entry}, role, 1_000.0)
        assert refused.value.reason == "role"


@pytest.mark.parametrize(("mine", "other", "fits"), [
    ("1.4.0", "1.4.9", True), ("1.4.0", "1.5.0", True), ("1.5.2", "1.4.0rc1", True), ("1.4", "1.5", True),
    ("1.4.0", "1.6.0", False), ("1.6.0", "1.4.0", False), ("1.4.0", "2.4.0", False), ("0+unknown", "1.4.0", True),
    ("1.4.0", "", True), ("1.10.0", "1.9.3", True), ("1.10.0", "1.1.0", False)])
def test_versions_are_one_minor_apart_at_most(mine: str, other: str, fits: bool) -> None:
    if fits:
        check_version(mine, [mine, other])
    else:
        with pytest.raises(JoinRefused, match="one minor version apart") as refused:
            check_version(mine, [mine, other])
        assert refused.value.reason == "version"


def test_a_name_that_another_disk_had_lately() -> None:
    with pytest.raises(JoinRefused, match="two nodes have this name") as refused:
        check_name_free("s1", 7, 8, 3.0, 10.0)
    assert refused.value.reason == "name_in_use"
    check_name_free("s1", 7, 7, 0.0, 10.0)
    check_name_free("s1", 7, 8, 10.0, 10.0)
    check_name_free("s1", 7, None, None, 10.0)


def test_addresses_are_one_nodes_alone_and_rooms_are_finite() -> None:
    other = NodeEntry("s2", "s1:7702")
    with pytest.raises(JoinRefused, match="is the address of node s2"):
        check_room(ONE, {"s2": other})
    check_room(ONE, {"s2": replace(other, state=NodeState.LEFT), "s1": NodeEntry("s1", "s1:7702")})
    full = {f"n{number}": NodeEntry(f"n{number}", f"n{number}:1") for number in range(MAX_CLUSTER_NODES)}
    with pytest.raises(JoinRefused) as refused:
        check_room(ONE, full)
    assert refused.value.reason == "full"
    check_room(ONE, {**dict(list(full.items())[1:]), "s1": NodeEntry("s1", "s1:7702")})


@pytest.mark.parametrize("change", [
    {"name": "S1"}, {"name": ""}, {"name": "a" * 64}, {"address": "s1"}, {"address": "0.0.0.0:7702"},
    {"client_address": "s1"}, {"http_address": "s1:99999"}, {"zone": "a b"}, {"capacity": 0.0},
    {"capacity": float("nan")}, {"capacity": 1e9}, {"number": 1 << 32}, {"commands": 0}, {"version": "1" * 65}])
def test_what_no_settings_say_is_refused(change: dict[str, object]) -> None:
    assert check_candidate(ONE) is ONE
    with pytest.raises(InvalidArgument):
        check_candidate(replace(ONE, **change))  # type: ignore[arg-type]


def test_an_entry_is_written_again_only_where_something_changed() -> None:
    first = ONE.entry(None, 5.0)
    assert (first.state, first.joined_s, first.updated_s, first.role) == (NodeState.ACTIVE, 5.0, 5.0, Role.SHARD)
    assert ONE.entry(first, 9.0) is first
    moved = replace(ONE, address="elsewhere:1").entry(first, 9.0)
    assert (moved.address, moved.joined_s, moved.updated_s) == ("elsewhere:1", 5.0, 9.0)
    draining = replace(first, state=NodeState.DRAINING)
    assert ONE.entry(draining, 9.0) is draining
    assert replace(ONE, zone="b").entry(draining, 9.0).state is NodeState.DRAINING
    back = ONE.entry(replace(first, state=NodeState.LEFT), 9.0)
    assert (back.state, back.joined_s) == (NodeState.ACTIVE, 9.0)
