"""Child processes: started again, drained, killed after a bound, never orphaned."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vecdb.core.errors import Unavailable
from vecdb.runtime.supervise import ChildEvent, Supervisor

FOLLOWS = """
    import os, signal, sys, time
    sys.path.insert(0, ROOT)
    from vecdb.runtime.supervise import follow
    follow(int(sys.argv[2]), within_s=5)
"""


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def script(tmp_path: Path, text: str) -> Callable[[int, int], list[str]]:
    """A child that runs ``text`` with its index and lifeline as arguments; ``HERE`` is a directory for its notes."""
    root = str(Path(__file__).resolve().parents[3])
    path = tmp_path / "child.py"
    path.write_text(f"HERE = {str(tmp_path)!r}\nROOT = {root!r}\n" + textwrap.dedent(text))
    return lambda index, lifeline: [sys.executable, "-S", str(path), str(index), str(lifeline)]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_one_that_crashes_is_started_again_ever_more_slowly(tmp_path: Path) -> None:
    events: list[ChildEvent] = []
    command = script(tmp_path, """
        import os, sys, time
        with open(f"{HERE}/starts", "a") as file: file.write("x")
        if os.path.getsize(f"{HERE}/starts") <= 3: os._exit(7)
        time.sleep(600)
    """)
    supervisor = Supervisor(command, 1, on_event=events.append, first_delay_s=0.01)
    supervisor.start()
    try:
        until(lambda: sum(one.kind == "started" for one in events) == 4)
        until(lambda: (tmp_path / "starts").stat().st_size == 4)
        ended = [one for one in events if one.kind == "ended"]
        assert [one.code for one in ended] == [7, 7, 7]
        assert [one.delay_s for one in ended] == [0.01, 0.02, 0.04]
        until(lambda: supervisor.pids()[0] is not None)
        assert supervisor.restarts == 3
        os.kill(supervisor.pids()[0] or 0, signal.SIGKILL)
        until(lambda: len([one for one in events if one.kind == "ended"]) == 4)
        assert events[-1].code == -9 or events[-2].code == -9
    finally:
        supervisor.stop(5.0)
    assert supervisor.pids() == [None]


def test_a_child_that_ran_long_begins_anew_with_short_waits(tmp_path: Path) -> None:
    events: list[ChildEvent] = []
    supervisor = Supervisor(script(tmp_path, "import os; os._exit(1)"), 1, on_event=events.append, first_delay_s=0.01,
                            steady_s=0.0)
    supervisor.start()
    until(lambda: len([one for one in events if one.kind == "ended"]) >= 3)
    supervisor.stop(5.0)
    assert {one.delay_s for one in events if one.kind == "ended"} == {0.01}


def test_stop_waits_for_the_drain(tmp_path: Path) -> None:
    command = script(tmp_path, """
        import os, signal, sys, time
        def drain(*_):
            time.sleep(0.2)
            open(f"{HERE}/drained{sys.argv[1]}", "w").close()
            os._exit(0)
        signal.signal(signal.SIGTERM, drain)
        open(f"{HERE}/ready{sys.argv[1]}", "w").close()
        time.sleep(600)
    """)
    supervisor = Supervisor(command, 3)
    supervisor.start()
    until(lambda: len(list(tmp_path.glob("ready*"))) == 3)
    pids = [pid for pid in supervisor.pids() if pid]
    assert all(os.getpgid(pid) != os.getpgrp() for pid in pids)  # a Ctrl-C is ours alone
    assert supervisor.stop(20.0) == 0
    assert len(list(tmp_path.glob("drained*"))) == 3
    assert not any(map(alive, pids))
    assert supervisor.restarts == 0


def test_what_does_not_drain_is_killed(tmp_path: Path) -> None:
    events: list[ChildEvent] = []
    command = script(tmp_path, """
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open(f"{HERE}/ready", "w").close()
        time.sleep(600)
    """)
    supervisor = Supervisor(command, 1, on_event=events.append)
    supervisor.start()
    until((tmp_path / "ready").exists)
    (pid,) = supervisor.pids()
    assert supervisor.stop(0.2) == 1
    assert not alive(pid or 0)
    assert events[-1] == ChildEvent("killed", 0, pid or 0)


def test_a_parent_that_is_killed_leaves_no_orphan(tmp_path: Path) -> None:
    command = script(tmp_path, FOLLOWS + """
    with open(f"{HERE}/pid{sys.argv[1]}", "w") as file: file.write(str(os.getpid()) + ".")
    time.sleep(600)
    """)
    parent = tmp_path / "parent.py"
    parent.write_text(textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).resolve().parents[3])!r})
        from vecdb.runtime.supervise import Supervisor
        command = {command(0, 0)[:3]!r}
        Supervisor(lambda index, lifeline: [*command, str(index), str(lifeline)], 2).start()
        time.sleep(600)
    """))
    process = subprocess.Popen([sys.executable, str(parent)])
    try:
        until(lambda: sum(one.read_text().endswith(".") for one in tmp_path.glob("pid*")) == 2)
        pids = [int(one.read_text()[:-1]) for one in tmp_path.glob("pid*")]
        assert all(map(alive, pids))
    finally:
        process.kill()
        process.wait()
    until(lambda: not any(map(alive, pids)))


def test_a_command_that_does_not_exist_is_told_at_the_start(tmp_path: Path) -> None:
    good = script(tmp_path, "import time; time.sleep(600)")
    supervisor = Supervisor(lambda index, line: good(index, line) if index else ["/no/such/program"], 2)
    with pytest.raises(Unavailable, match="process 0 cannot be started"):
        supervisor.start()
    assert supervisor.pids() == [None, None]


def test_stopping_ends_the_wait_for_the_next_start(tmp_path: Path) -> None:
    events: list[ChildEvent] = []
    supervisor = Supervisor(script(tmp_path, "import os; os._exit(1)"), 1, on_event=events.append, first_delay_s=600,
                            last_delay_s=600)
    supervisor.start()
    until(lambda: any(one.kind == "ended" for one in events))
    assert supervisor.stop(20.0) == 0
    assert supervisor.stop(0.0) == 0
