"""Jobs of a cluster that are watched: how far they are, in what, and what they say meanwhile."""

from collections import deque
from dataclasses import replace
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
    assert lines[1].startswith("job 7: 1 of 4 shards, ")
    assert all(line.startswith("job 7: 4 of 4 shards, ") for line in lines[2:])


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
