"""The audit log: what a line says and does not say, rotation, strangers, disks that refuse."""

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from vecdb.core.access import Grant, Principal, Role
from vecdb.core.errors import InvalidArgument, StorageError
from vecdb.rpc import audit
from vecdb.rpc.audit import AuditLimits, AuditLog, without_secrets

SECRET = "vdb_abcdefghijkl_" + "a2" * 26
WHO = Principal("abcdefghijkl", "ops", (Grant(Role.ADMIN),), "ops.example.org")


class Clock:
    now = 1_700_000_000.25
    ticks = 0.0

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.ticks

    def sleep(self, seconds: float) -> None:
        self.ticks += seconds


class Told(list[tuple[str, str, dict[str, Any]]]):
    def __call__(self, level: str, event: str, **fields: Any) -> None:
        self.append((level, event, fields))


def note(log: AuditLog, method: str = "Collections/Drop", outcome: str = "OK", **arguments: Any) -> None:
    log.record(principal=WHO, peer="ipv4:10.0.0.7:4000", method=method, collection="docs", outcome=outcome,
               request_id="r-1", arguments=arguments)


def lines(*paths: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def test_a_line_says_who_what_when_and_how_it_ended(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", Clock())
    note(log, name="docs")
    log.flush()
    assert lines(tmp_path / "audit.jsonl") == [{
        "time": "2023-11-14T22:13:20.250+00:00", "method": "Collections/Drop", "collection": "docs", "outcome": "OK",
        "who": {"name": "ops", "key": "abcdefghijkl", "certificate": "ops.example.org", "peer": "ipv4:10.0.0.7:4000"},
        "request_id": "r-1", "arguments": {"name": "docs"}}]
    log.close()
    log.close()


def test_it_is_for_its_user_alone_even_where_the_file_was_there(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    before = os.umask(0)
    try:
        AuditLog(path, Clock()).close()
        assert path.stat().st_mode & 0o777 == 0o600
        path.chmod(0o644)
        AuditLog(path, Clock()).close()
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_no_secret_and_no_flood_gets_into_a_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, Clock())
    note(log, id=SECRET, secret="hunter2", nested={"api_key": "x", "list": [SECRET] * 500}, text="long " * 10_000,
         forged='"}\n{"time": "2023", "outcome": "OK"', surrogate="\ud800", huge=1 << 70, deep=[[[[[[[[1]]]]]]]])
    log.record(principal=WHO, peer="p", method="m", collection="c" * 100_000, outcome="OK", request_id=SECRET,
               arguments={str(n): "x" * 500 for n in range(60)})
    log.close()
    text = path.read_text()
    first, second = lines(path)
    assert "a2a2" not in text
    assert "hunter2" not in text
    assert first["arguments"]["id"] == "vdb_abcdefghijkl_***"
    assert first["arguments"]["nested"]["list"][-1] == "… 500 in all"
    assert len(text.splitlines()) == 2
    assert max(map(len, text.encode().splitlines())) <= audit.MAX_LINE_BYTES
    assert second["arguments"].endswith("bytes")


def test_files_rotate_by_size_and_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, Clock(), limits=AuditLimits(file_bytes=1_000, kept=3))
    for number in range(40):
        note(log, number=number)
        if number % 3 == 0:
            log.flush()
    log.close()
    files = [tmp_path / "audit.jsonl.3", tmp_path / "audit.jsonl.2", tmp_path / "audit.jsonl.1", path]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    kept = [line["arguments"]["number"] for line in lines(*files)]
    assert kept == list(range(40 - len(kept), 40))
    assert all(file.stat().st_size <= 1_000 and file.stat().st_mode & 0o777 == 0o600 for file in files)


def test_it_goes_on_in_a_new_file_when_another_moved_the_old(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, Clock())
    note(log, n=1)
    log.flush()
    path.rename(tmp_path / "moved")
    note(log, n=2)
    log.close()
    assert [line["arguments"]["n"] for line in lines(tmp_path / "moved", path)] == [1, 2]


def test_half_a_line_of_a_power_cut_is_ended_and_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text('{"whole": 1}\n{"ha')
    log = AuditLog(path, Clock())
    note(log)
    log.close()
    found = path.read_text().splitlines()
    assert found[:2] == ['{"whole": 1}', '{"ha']
    assert json.loads(found[2])["method"] == "Collections/Drop"


def test_strangers_cannot_rotate_the_log_away(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "audit.jsonl"
    log = AuditLog(path, clock)
    for _ in range(1_000):
        note(log, outcome="UNAUTHENTICATED", chosen="by a stranger")
    note(log, method="Admin/CreateKey")
    clock.ticks += 2.5
    for _ in range(10):
        note(log, outcome="PERMISSION_DENIED")
    log.close()
    found = lines(path)
    assert [line["outcome"] for line in found] == (["UNAUTHENTICATED"] * audit.FAILED_AT_ONCE + ["OK"]
                                                   + ["PERMISSION_DENIED"] * 2)
    assert found[-2]["suppressed"] == 1_000 - audit.FAILED_AT_ONCE
    assert "suppressed" not in found[-1]
    assert "arguments" not in found[0]


@pytest.mark.parametrize("failing", ["write", "fsync", "short"])
def test_a_disk_that_refuses_is_loud_keeps_the_line_and_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                   failing: str) -> None:
    path, told = tmp_path / "audit.jsonl", Told()
    log = AuditLog(path, Clock(), told)
    note(log, n=0)
    log.flush()
    write = os.write

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if failing == "short":
            patch.setattr(audit.os, "write", lambda file, data: write(file, data[:10]))
        else:
            patch.setattr(audit.os, failing, full)
        note(log, n=1)
        log.flush()
    assert log.failures == 1
    level, event, fields = told[-1]
    assert (level, event) == ("error", "audit_not_written")
    assert json.loads(fields["line"])["arguments"] == {"n": 1}
    note(log, n=2)
    log.close()
    kept = [line["arguments"]["n"] for line in lines(path)]
    assert kept == ([0, 1, 2] if failing == "fsync" else [0, 2])


def test_what_cannot_be_a_log_is_an_error_of_the_start(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be opened"):
        AuditLog(tmp_path / "none" / "audit.jsonl", Clock())
    with pytest.raises(InvalidArgument, match="no regular file"):
        AuditLog(Path("/dev/null"), Clock())


def test_many_threads_and_a_full_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, told = tmp_path / "audit.jsonl", Told()
    log = AuditLog(path, Clock(), told)
    threads = [threading.Thread(target=lambda: [note(log) for _ in range(100)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.flush()
    assert len(lines(path)) == 800
    monkeypatch.setattr(audit, "MAX_WAITING", 5)
    held = threading.Event()
    monkeypatch.setattr(log, "_prepare", lambda size: held.wait(60))
    for _ in range(20):
        note(log)
    held.set()
    log.flush()
    note(log)
    log.close()
    assert log.failures >= 20 - 5 - 5
    assert told[0][1] == "audit_lines_lost"
    assert len(lines(path)) == 821 - log.failures


def test_masking_leaves_plain_values_alone() -> None:
    plain = {"name": "docs", "dim": 3, "share": 0.5, "on": True, "none": None, "list": [1, "a"]}
    assert without_secrets(plain) == plain
    assert without_secrets({"secret": ""}) == {"secret": ""}
    assert without_secrets({"Authorization": f"Bearer {SECRET}"}) == {"Authorization": "***"}
    assert without_secrets(f"key={SECRET}, again {SECRET}") == "key=vdb_abcdefghijkl_***, again vdb_abcdefghijkl_***"
    assert without_secrets({n: n for n in range(100)})["…"] == "100 in all"
    assert without_secrets(ValueError("x")) == "ValueError: x"
