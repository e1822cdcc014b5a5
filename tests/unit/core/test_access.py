"""Roles, grants and principals: who may do what, and what nobody is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecdb.core.access import ANONYMOUS, Grant, Principal, Role, check_grants, mask_secrets
from vecdb.core.errors import InvalidArgument, LimitExceeded, PermissionDenied

NAMES = st.text("ab.-", min_size=1, max_size=4).map(lambda rest: "c" + rest)
PATTERNS = NAMES | NAMES.map(lambda name: name + "*")
GRANTS = st.builds(Grant, st.sampled_from(Role), st.lists(PATTERNS, max_size=3).map(tuple))


def covers(pattern: str, name: str) -> bool:
    return name[:len(pattern) - 1] == pattern[:-1] if pattern[-1] == "*" else name == pattern


@given(st.lists(GRANTS, max_size=4), st.sampled_from(Role), st.none() | NAMES)
def test_a_principal_may_what_one_of_its_grants_says(grants: list[Grant], role: Role, name: str | None) -> None:
    expected = any(grant.role.value >= role.value and (
        not grant.collections or (name is not None and any(covers(one, name) for one in grant.collections)))
        for grant in grants)
    principal = Principal("id", "name", tuple(grants))
    assert principal.allows(role, name) == expected
    if expected:
        principal.require(role, name)
    else:
        with pytest.raises(PermissionDenied) as caught:
            principal.require(role, name)
        assert caught.value.fields["needs"] == role.word
        assert caught.value.fields["collection"] == name
    if name is not None:
        assert principal.visible([name]) == ([name] if principal.allows(Role.READ, name) else [])


def test_an_admin_of_some_collections_is_no_admin_of_the_server() -> None:
    team = Principal("id", "team", (Grant(Role.ADMIN, ("team-*",)), Grant(Role.READ)))
    team.require(Role.ADMIN, "team-a")
    team.require(Role.READ, "other")
    for collection in (None, "other", "team", "xteam-a"):
        with pytest.raises(PermissionDenied, match=r"team\[id\] lacks the role admin on"):
            team.require(Role.ADMIN, collection)
    assert team.everywhere is Role.READ
    assert ANONYMOUS.everywhere is Role.ADMIN
    assert Principal("id", "x", (Grant(Role.WRITE, ("a",)),)).everywhere is None


def test_a_star_alone_is_everything() -> None:
    assert Grant(Role.READ, ("a", "*")) == Grant(Role.READ)


@pytest.mark.parametrize(("names", "error"), [
    (("a b",), InvalidArgument), (("",), InvalidArgument), (("a*b",), InvalidArgument), (("**",), InvalidArgument),
    (("../x",), InvalidArgument), ((5,), InvalidArgument), (("-a*",), InvalidArgument), ("docs", InvalidArgument),
    (("a" * 129,), LimitExceeded), (("a" * 129 + "*",), LimitExceeded), (("a",) * 257, LimitExceeded)])
def test_what_no_grant_can_name(names: tuple[str, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        Grant(Role.READ, names)


def test_the_longest_names_are_allowed() -> None:
    grant = Grant(Role.READ, ("a" * 128, "b" * 127 + "*"))
    assert grant.covers("a" * 128)
    assert grant.covers("b" * 128)


@pytest.mark.parametrize("word", ["king", "", 0, 4, None, "unspecified", "re\ud800ad"])
def test_unknown_roles_are_refused(word: object) -> None:
    with pytest.raises(InvalidArgument, match="read, write, admin"):
        Role.of(word)  # type: ignore[arg-type]


def test_roles_by_name_number_and_themselves() -> None:
    assert [Role.of(one) for one in ("read", "WRITE", 3, Role.READ)] == [Role.READ, Role.WRITE, Role.ADMIN, Role.READ]
    assert [role.word for role in Role] == ["read", "write", "admin"]


def test_grants_are_counted() -> None:
    assert check_grants([Grant(Role.READ)]) == (Grant(Role.READ),)
    with pytest.raises(InvalidArgument):
        check_grants([])
    with pytest.raises(LimitExceeded):
        check_grants([Grant(Role.READ)] * 65)


def test_secrets_are_masked_wherever_they_stand_in_a_text() -> None:
    secret = "vdb_abcdefghijkl_" + "a" * 52
    assert mask_secrets(f"Bearer {secret}; {secret}x") == "Bearer vdb_abcdefghijkl_***; vdb_abcdefghijkl_***"
    assert mask_secrets("vdb_ nothing") == "vdb_ nothing"
