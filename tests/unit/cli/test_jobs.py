"""Jobs of a cluster that are watched: how far they are, in what, and what they say meanwhile."""

from collections import deque
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from vecdb.cli import changing, output
from vecdb.core.cluster import JobInfo

URL = ["--url", "grpc://db.example:7700"]
JOB = JobInfo(7, "split", "4", {}, "running", "copy", 1, 4, "shards")


class Told(dict[str, Any]):
    """A cluster whose job is another one whenever it is asked."""

    def __init__(self, *jobs: JobInfo) -> None:
        self._jobs = deque(jobs)

    def __missing__(self, method: str) -> list[JobInfo]:
        assert method == "cluster_jobs"
        return [self._jobs.popleft()]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changing, "LOOK_S", 0.0)
    monkeypatch.setattr(output, "_EVERY_S", 0.0)


def test_progress_is_in_the_unit_of_the_job_once_it_has_one(cli: Any, backend: Any) -> None:
    backend.operated = Told(JobInfo(7, "split", "4", {}, "waiting"), JOB, replace(JOB, state="done", done=4))
    lines = cli("job", "wait", "7", *URL).err.splitlines()
    assert lines[0] == "job 7", "nobody knows in what it will be counted"
    assert lines[1] == "job 7: 1 of 4 shards"
    assert all(line.startswith("job 7: 4 of 4 shards") for line in lines[2:])


def test_what_was_done_before_somebody_watched_is_in_no_rate(cli: Any, backend: Any) -> None:
    for state in ("cancelled", "done"):
        backend.operated = Told(replace(JOB, state=state, done=3, unit="records"))
        assert cli("job", "wait", "7", *URL).err.splitlines()[-1] == "job 7: 3 of 4 records"


def test_a_rate_is_that_of_the_time_that_was_watched_and_no_time_is_left_of_what_has_ended(
        capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Any = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(output, "time", clock)
    with output.Output(False).progress("job 7", unit="records", watched=True) as advance:
        for at, done in ((100.5, 1_000), (101.0, 1_100), (105.5, 2_000)):
            clock.now = at
            advance(done, 3_000)
    assert capsys.readouterr().err.splitlines() == [
        "job 7: 1,000 of 3,000 records", "job 7: 1,100 of 3,000 records",
        "job 7: 2,000 of 3,000 records, 200/s, 5.0 s left", "job 7: 2,000 of 3,000 records, 200/s in 5.5 s"]


def test_what_a_job_says_is_printed_once(cli: Any, backend: Any) -> None:
    said, more = replace(JOB, error="it cannot catch up"), replace(JOB, error="shard 4 has no leader")
    backend.operated = Told(JOB, said, said, more, replace(JOB, state="cancelled", error="too late"))
    ran = cli("job", "wait", "7", *URL)
    assert [line for line in ran.err.splitlines() if " of 4" not in line] == [
        "job 7: it cannot catch up", "job 7: shard 4 has no leader"]
    assert "too late" in ran.out
    assert ran.code == 4
    backend.operated = Told(said, replace(JOB, state="done"))
    assert cli("job", "wait", "7", "--json", *URL).err == ""
