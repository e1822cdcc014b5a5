"""By which names the face may be called: a page of a stranger's site must not reach a node that asks for no key."""

from typing import Any

import pytest

from vecdb.config import Settings
from vecdb.rpc.http.app import host_of, origin_of
from vecdb.serving.compose import _known_host


class Door:
    def __init__(self, required: bool) -> None:
        self.required = required


def known(name: str, *, required: bool = False, **server: Any) -> bool:
    settings = Settings(server={"host": "127.0.0.1", **server})
    return _known_host(settings, Door(required))(name)  # type: ignore[arg-type]


def scope(host: bytes | None) -> dict[str, Any]:
    return {"headers": [] if host is None else [(b"Host", host)]}


@pytest.mark.parametrize(("host", "name"), [
    (b"LOCALHOST:7701", "localhost"), (b"127.0.0.1:7701", "127.0.0.1"), (b"[::1]:7701", "::1"),
    (b"evil.example.", "evil.example"),
    (b"", ""), (None, ""), (b"a:b:c", "a"), (b"[::1", "::1")])
def test_the_name_is_the_host_without_its_port(host: bytes | None, name: str) -> None:
    assert host_of(scope(host)) == name


@pytest.mark.parametrize(("origin", "name"), [
    (b"http://localhost:7701", "localhost"), (b"https://Evil.example", "evil.example"), (b"null", "null"),
    (b"http://[::1", "http://[::1"), (None, "")])
def test_the_page_of_a_browser_is_named_by_its_origin(origin: bytes | None, name: str) -> None:
    assert origin_of({"headers": [] if origin is None else [(b"origin", origin)]}) == name


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "127.8.8.8", "::1", ""])
def test_this_machines_own_names_are_known(name: str) -> None:
    assert known(name)


@pytest.mark.parametrize("name", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1",
                                  "unix"])
def test_a_strangers_name_is_not(name: str) -> None:
    assert not known(name)
    assert known(name, required=True), "a page of a stranger has no key"
    assert known(name, host="0.0.0.0"), "others reach it anyway; loud_binding says so"
    assert known(name, http_hosts=(name,))
