"""What the harness of bulk loading counts, and that it tells what it counted."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bench import bulk

BUILT = {"wall_s": 100.0, "cpu_s": 180.0, "spool_wall_s": 13.0, "spool_cpu_s": 14.0, "build_wall_s": 80.0,
         "build_cpu_s": 160.0, "process_peak_bytes": 1_250_000_000, "records": 1_000_000, "files": 40,
         "bytes": 700_000_000}  # fmt: skip
ATTACHED = {"wall_s": 17.5, "job_s": 16.0, "cpu_s": 19.5, "records": 1_000_000, "digests_agree": True, "replicas": 3,
            "files": 120, "bytes": 2_100_000_000, "recall": 0.98765, "recall_at_ef": 0.99994, "ef": 64, "queries": 200,
            "k": 10}  # fmt: skip


@dataclass
class Hit:
    id: int


class Docs:
    """Finds what it is told, for each row of a batch."""

    def __init__(self, found: list[list[int]]) -> None:
        self._found = found
        self.asked: list[tuple[int, int | None]] = []

    def query(self, queries, k, ef):
        self.asked.append((len(queries), ef))
        return [[Hit(id) for id in self._found[int(row[0])]] for row in queries]


def test_recall_counts_each_of_the_nearest_once():
    truth = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    queries = np.array([[0.0], [1.0]], np.float32)
    docs = Docs([[1, 2], [9, 5]])
    assert bulk.recall(docs, queries, truth, 2, 64) == 0.75
    assert docs.asked == [(2, 64)]
    assert bulk.recall(Docs([[1, 1], [3, 4]]), queries, truth, 2, None) == 0.25  # the third is not among two


def test_recall_asks_in_batches_and_counts_them_all(monkeypatch):
    monkeypatch.setattr(bulk, "BATCH", 2)
    rows = np.arange(5, dtype=np.float32)[:, None]
    docs = Docs([[row] for row in range(5)])
    assert bulk.recall(docs, rows, np.arange(5)[:, None], 1, None) == 1.0
    assert [count for count, _ in docs.asked] == [2, 2, 1]


def test_files_are_counted_wherever_they_lie(tmp_path: Path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"123")
    (tmp_path / "a" / "b" / "two").write_bytes(b"45")
    assert bulk.files_of(tmp_path) == {"files": 2, "bytes": 5}


def test_a_process_has_a_peak_and_one_that_is_gone_has_none():
    assert bulk.peak_bytes(os.getpid()) > 10 << 20
    assert bulk.peak_bytes(2**22 + 1) == 0  # above the kernel's highest number of a process


def test_what_is_spent_until_all_is_spooled_is_told_apart(tmp_path: Path):
    seen = bulk.Build(tmp_path)
    child = SimpleNamespace(pid=os.getpid(), cpu_s=lambda: 3.0)
    seen.look(child)
    assert seen.spool_cpu_s is None
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "00000.json").write_text("{}")
    seen.look(child)
    child.cpu_s = lambda: 9.0
    seen.look(child)
    assert seen.spool_cpu_s == 3.0


def test_steps_that_are_run_apart_are_one_result(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(bulk, "build", lambda options, place: BUILT)
    monkeypatch.setattr(bulk, "attach", lambda options, place: ATTACHED)
    given = ["--records", "5", "--out", str(tmp_path / "deep" / "out.json"), "--folder", str(tmp_path)]
    first = bulk.run(bulk.parse([*given, "--steps", "build"]), tmp_path)
    assert "attach" not in first
    both = bulk.run(bulk.parse([*given, "--steps", "attach"]), tmp_path)
    assert (both["build"], both["attach"]) == (BUILT, ATTACHED)
    assert json.loads((tmp_path / "deep" / "out.json").read_text()) == both
    other = bulk.run(bulk.parse([*given, "--steps", "attach", "--shards", "9"]), tmp_path)
    assert "build" not in other  # of another build


def test_options_that_cannot_be_done_are_refused():
    for given in (["--steps", "attach"], ["--steps", "build,fly"]):
        with pytest.raises(SystemExit):
            bulk.parse(given)


def test_attaching_what_was_never_built_is_refused(tmp_path: Path):
    with pytest.raises(SystemExit, match="nothing is built"):
        bulk.attach(bulk.parse(["--folder", str(tmp_path)]), tmp_path)


def test_the_table_says_what_was_measured(capsys):
    result = {"about": bulk.about(bulk.parse([])), "build": BUILT, "attach": ATTACHED | {"digests_agree": False}}
    spool, built, there = bulk.lines(result)
    assert spool[:3] == ("spool", "13.0", "14.0")
    assert built[:3] == ("build", "80.0", "160.0")
    assert "6,250 records a CPU second" in built[3]
    assert "1.25 GB of memory" in built[3]
    assert there[:3] == ("attach", "17.5", "19.5")
    assert "DIFFER" in there[3]
    assert "0.9999 at ef 64" in there[3]
    bulk.tell(result)
    assert "1,000,000 x 96 in 4 shards" in capsys.readouterr().out
