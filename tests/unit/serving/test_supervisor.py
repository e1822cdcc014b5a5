"""Front processes supervised: stand-ins that listen, end, say nonsense or nothing."""

import asyncio
import os
import signal
import socket
import stat
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vecdb.config import EngineSettings, ServerSettings, Settings
from vecdb.core.errors import Unavailable
from vecdb.serving import compose, fronts
from vecdb.serving.front import FrontSettings
from vecdb.serving.fronts import Fronts, reserve

LISTENS = 'echo \'{"listening": true}\'\n'
STAYS = LISTENS + "exec sleep 60\n"


class Told:
    """What the supervisor said."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, level: str, event: str, **fields: Any) -> None:
        self.said.append((event, fields))

    def count(self, event: str) -> int:
        return sum(one == event for one, _ in self.said)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes fronts of a shell script; it reads the line of settings first."""
    script = tmp_path / "front"

    def write(body: str) -> None:
        partial = tmp_path / "partial"
        partial.write_text("#!/bin/sh\nread settings\n" + body, encoding="ascii")
        partial.chmod(stat.S_IRWXU)
        partial.replace(script)

    monkeypatch.setattr(sys, "executable", str(script))
    return write


def settings(folder: Path) -> FrontSettings:
    return FrontSettings("front", folder, "127.0.0.1:1", 1 << 20, 8, 1 << 20, 64, False, 1.0, "info",
                         "json")


def drive(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.01)


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_one_that_dies_is_started_anew_and_all_end_when_told(tmp_path: Path, stand_in: Callable[[str], None]) -> None:
    async def test() -> None:
        told = Told()
        stand_in(STAYS)
        some = Fronts(settings(tmp_path), 2, told)
        await some.start()
        first, second = some.pids
        os.kill(first, signal.SIGKILL)
        await until(lambda: first not in some.pids and told.count("front_ended") == 1)
        assert some.pids[1] == second
        assert told.said[0] == ("front_ended", {"front": 0, "pid": first, "code": -signal.SIGKILL,
                                                "again_in_s": fronts.BACKOFF_S[0]})
        last = some.pids
        await some.stop(1.0)
        assert not any(map(running, (*last, first)))
        assert told.count("front_ended") == 1

    drive(test)


def test_pauses_grow_while_one_fails_and_it_is_tried_for_ever(
        tmp_path: Path, stand_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fronts, "BACKOFF_S", (0.01, 0.04))

    async def test() -> None:
        told = Told()
        stand_in(STAYS)
        some = Fronts(settings(tmp_path), 1, told)
        await some.start()
        stand_in('echo \'{"error": "no"}\'\n')
        os.kill(some.pids[0], signal.SIGKILL)
        await until(lambda: told.count("front_failed") >= 3)
        stand_in("echo nonsense\n")
        await until(lambda: any("did not answer" in fields.get("error", "") for _, fields in told.said))
        (tmp_path / "front").unlink()  # cannot even be started
        await until(lambda: any("cannot be started" in fields.get("error", "") for _, fields in told.said))
        stand_in(LISTENS)  # listens, and ends at once
        before = told.count("front_ended")
        await until(lambda: told.count("front_ended") >= before + 2)
        stand_in(STAYS)
        count = len(told.said)
        await until(lambda: bool(some.pids) and running(some.pids[0]) and len(told.said) >= count)
        pauses = [fields["again_in_s"] for _, fields in told.said]
        assert pauses[:4] == [0.01, 0.02, 0.04, 0.04]
        assert set(pauses[2:]) == {0.04}
        await some.stop(0.0)

    drive(test)


@pytest.mark.parametrize(("body", "words"), [
    ('echo \'{"error": "cannot listen on x"}\'\n', "cannot listen on x"), ("exit 3\n", "did not answer"),
    ("echo '{'\n", "did not answer")])
def test_a_start_that_fails_says_why_and_leaves_nothing(tmp_path: Path, stand_in: Callable[[str], None], body: str,
                                                        words: str) -> None:
    async def test() -> None:
        # The second of the two stays, and must not when the first fails.
        stand_in(f'case "$settings" in *front-1*) {STAYS};; esac\n{body}')
        some = Fronts(settings(tmp_path), 2, Told())
        with pytest.raises(Unavailable, match=words):
            await some.start()
        assert not any(map(running, some.pids))

    drive(test)


def test_one_that_will_not_end_is_killed(tmp_path: Path, stand_in: Callable[[str], None],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fronts, "GRACE_S", 0.1)

    async def test() -> None:
        stand_in("trap '' TERM\n" + LISTENS + "while :; do sleep 0.01; done\n")
        some = Fronts(settings(tmp_path), 1, Told())
        await some.start()
        await some.stop(0.1)
        assert not running(some.pids[0])

    drive(test)


def test_a_reserved_port_is_ours_alone_and_fronts_may_share_it() -> None:
    with reserve("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(Unavailable, match=f"cannot listen on {host}:{port}: address already in use"):
                reserve(host, port)
        with socket.socket() as shared:
            for option in (socket.SO_REUSEPORT, socket.SO_REUSEADDR):  # as gRPC does
                shared.setsockopt(socket.SOL_SOCKET, option, 1)
            shared.bind(("127.0.0.1", port))
            shared.listen()
            with socket.create_connection(("127.0.0.1", port), 5) as client, shared.accept()[0] as ours:
                # Ours closes first and waits out its time: that must not keep the port from the next node.
                ours.shutdown(socket.SHUT_RDWR)
                assert client.recv(1) == b""
    reserve("127.0.0.1", port).close()


def test_a_port_whose_old_connections_wait_out_their_time_may_be_shared() -> None:
    """They were of a node without fronts, which shares nothing."""
    with socket.socket() as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind(("127.0.0.1", 0))
        alone.listen()
        port = alone.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), 5) as client:
            ours, _ = alone.accept()
            ours.close()
            assert client.recv(1) == b""
    reserve("127.0.0.1", port).close()


def test_ipv6_with_and_without_brackets() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no ::1 to bind (IPv6 is off in its kernel); 127.0.0.1 is tested above")
    for host in ("::1", "[::1]"):
        reserve(host, 0).close()


def test_settings_travel_whole(tmp_path: Path) -> None:
    one = replace(settings(tmp_path), cert_file=tmp_path / "cert.pem")
    assert FrontSettings.from_json(one.to_json()) == one


@pytest.mark.parametrize(("cores", "count"), [(1, 1), (2, 1), (7, 1), (8, 2), (12, 3), (16, 4), (192, 4)])
def test_fronts_by_the_cores(monkeypatch: pytest.MonkeyPatch, cores: int, count: int) -> None:
    monkeypatch.setattr(compose, "available_cores", lambda: cores)
    assert compose.processes(Settings(server=ServerSettings(processes=0))) == count
    assert compose.processes(Settings(server=ServerSettings(processes=3))) == 3
    assert compose.processes(Settings(server=ServerSettings(processes=0), engine=EngineSettings(threads=8))) == 2
