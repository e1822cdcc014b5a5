"""The job runner: one at a time, each key once, failures kept, closing stops what runs."""

import threading

import pytest

from vecdb.core.errors import StorageFull
from vecdb.services.jobs import Job, JobCancelled, JobRunner


class ManualClock:
    """Time that moves when told."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def runner() -> JobRunner:
    return JobRunner(ManualClock(), lambda job, error: None)


def test_a_queued_key_is_not_queued_twice(runner: JobRunner) -> None:
    gate, started, ran = threading.Event(), threading.Event(), []

    def first(job: Job) -> None:
        started.set()
        gate.wait(60)

    runner.submit("first", "c", ("first",), first)
    assert started.wait(60)
    for _ in range(3):
        runner.submit("second", "c", ("second",), lambda job: ran.append(job.kind))
    assert [job["state"] for job in runner.describe("c")] == ["running", "queued"]
    gate.set()
    done = threading.Event()
    runner.submit("last", "c", ("last",), lambda job: done.set())
    assert done.wait(60)
    assert ran == ["second"]
    runner.close()


def test_a_failure_is_kept_reported_and_forgotten_after_success() -> None:
    reported: list[str] = []
    seen = threading.Event()

    def report(job: Job, error: Exception) -> None:
        reported.append(str(error))
        seen.set()

    runner = JobRunner(ManualClock(), report)

    def fail(job: Job) -> None:
        raise StorageFull("no room")

    runner.submit("seal", "c", ("seal",), fail)
    assert seen.wait(60)
    assert [(job["state"], job["error"]) for job in runner.describe("c")] == [("failed", "no room")]
    assert runner.describe("other") == []
    done = threading.Event()
    runner.submit("seal", "c", ("seal",), lambda job: None)
    runner.submit("after", "c", ("after",), lambda job: done.set())
    assert done.wait(60)
    runner.close()
    assert runner.describe("c") == []
    assert reported == ["no room"]


def test_closing_stops_a_running_job_at_its_next_report(runner: JobRunner) -> None:
    started, ended = threading.Event(), []

    def work(job: Job) -> None:
        try:
            for step in range(10**9):
                job.report("turning", step, 10**9)
                started.set()
        except JobCancelled:
            ended.append("cancelled")
            raise

    runner.submit("endless", "c", ("endless",), work)
    assert started.wait(60)
    runner.close()
    assert ended == ["cancelled"]
    runner.submit("late", "c", ("late",), work)
    assert runner.describe("c") == []


def test_forget_stops_only_its_collection(runner: JobRunner) -> None:
    started, done = threading.Event(), threading.Event()

    def work(job: Job) -> None:
        started.set()
        while True:
            job.report("turning", 0, 1)

    runner.submit("endless", "dropped", ("a",), work)
    assert started.wait(60)
    runner.submit("next", "dropped", ("b",), work)
    runner.submit("mine", "kept", ("c",), lambda job: done.set())
    runner.forget("dropped")
    assert done.wait(60)
    assert runner.describe("dropped") == []
    runner.close()


def test_eta_follows_the_share_done() -> None:
    job = Job("seal", "c", ("k",), started_s=100.0, state="running")
    job.report("building graph", 25, 100)
    told = job.describe(110.0)
    assert (told["elapsed_s"], told["eta_s"]) == (10.0, 30.0)
    assert Job("seal", "c", ("k",)).describe(5.0)["eta_s"] is None


def test_a_job_waits_until_there_is_a_thread_for_it(monkeypatch: pytest.MonkeyPatch, runner: JobRunner) -> None:
    """Who submits it has done something that is done, and closing has more to close."""
    start, done = threading.Thread.start, threading.Event()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    runner.submit("seal", "c", ("seal",), lambda job: done.set())
    runner.close()
    runner = JobRunner(ManualClock(), lambda job, error: None)
    runner.submit("seal", "c", ("seal",), lambda job: done.set())
    monkeypatch.setattr(threading.Thread, "start", start)
    assert not done.is_set()
    runner.submit("seal", "c", ("seal",), lambda job: done.set())
    assert done.wait(60)
    runner.close()
