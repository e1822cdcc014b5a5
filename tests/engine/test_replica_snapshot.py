"""Snapshots: consistent at one position, resumable, installed whole or not at all."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import orjson
import pytest

from tests.faults import ROOT, flip_byte
from tests.replicas import DIM, FOLDER, SCHEMA, carry, open_replicas, play, random_log, records_of, replica_at
from vecdb.core.errors import DataCorrupted, StorageError, Unavailable
from vecdb.core.query import QueryRequest
from vecdb.ports.replicator import Position, SnapshotFile
from vecdb.services.local import LocalDatabase
from vecdb.services.shard import ShardService
from vecdb.services.snapshots import POSITION, hash_file

LOG = random_log(5, 200)


def _given(path: Path, upto: int = 200) -> LocalDatabase:
    """A database with sealed segments, growing records and commands that are only in memory."""
    database = open_replicas(path, seal_records=60, max_segment_records=400)
    database.host(SCHEMA, FOLDER)
    replica = database.replica("c")
    play(replica, LOG, upto // 2)
    database.optimize("c")
    play(replica, LOG, upto)
    return database


def test_a_snapshot_makes_an_equal_replica_that_goes_on(tmp_path: Path) -> None:
    giving, taking = _given(tmp_path / "a", 150), open_replicas(tmp_path / "b", seal_records=1_000)
    taking.host(SCHEMA, FOLDER)
    source, target = giving.replica("c"), taking.replica("c")
    play(target, LOG, 20)
    snapshot = source.snapshot()
    assert snapshot.position == Position(150, 3) == source.position()
    assert any(file.name.startswith("segments/") for file in snapshot.files)
    for file in snapshot.files:
        assert hash_file(snapshot.folder / file.name) == (file.bytes, file.checksum)
    then, at = source.digest(), records_of(giving)
    play(source, LOG, 180)  # the snapshot stays as it is
    giving.optimize("c")
    incoming = target.receive(snapshot.position, snapshot.files)
    assert carry(snapshot, incoming) == sum(file.bytes for file in snapshot.files)
    assert target.position().log_index == 20
    incoming.install()
    incoming.close()
    snapshot.release()
    assert target.digest() == then
    assert records_of(taking) == at
    assert target.verify()["equal"]
    assert sorted(os.listdir(target.home.folder)) == ["00000002", "STATE"], "nothing is left of the old and the pieces"
    assert os.listdir(source.home.snapshots) == []
    play(target, LOG)
    play(source, LOG)
    assert target.digest() == source.digest()
    assert target.marks() == source.marks()
    taking.close()
    taking = open_replicas(tmp_path / "b")
    assert taking.replica("c").position().log_index == 200
    assert records_of(taking) == records_of(giving)
    taking.close()
    giving.close()


def test_outcomes_after_a_snapshot_are_those_of_the_others(tmp_path: Path) -> None:
    giving = _given(tmp_path / "a", 150)
    with replica_at(tmp_path / "b") as target:
        snapshot = giving.replica("c").snapshot()
        incoming = target.receive(snapshot.position, snapshot.files)
        carry(snapshot, incoming)
        incoming.install()
        assert play(target, LOG) == play(giving.replica("c"), LOG), "tokens from before the snapshot are known"
    giving.close()


def test_a_snapshot_is_of_one_moment_while_writes_and_jobs_go_on(tmp_path: Path) -> None:
    log = random_log(9, 700, 300)
    digests: dict[int, str] = {0: f"{0:032x}"}
    with replica_at(tmp_path / "a", seal_records=80, background=True) as source, replica_at(tmp_path / "b") as target:
        def write() -> None:
            for index, command in enumerate(log):
                source.apply(index + 1, 1, command)
                digests[index + 1] = source.digest().digest

        thread = threading.Thread(target=write)
        thread.start()
        positions = []
        while thread.is_alive() or not positions:
            snapshot = source.snapshot()
            incoming = target.receive(snapshot.position, snapshot.files)
            carry(snapshot, incoming)
            incoming.install()
            snapshot.release()
            positions.append(snapshot.position.log_index)
            thread.join(0.05)
        thread.join()
        assert target.digest().digest == digests[positions[-1]]
        assert target.verify()["equal"]
        assert source.verify()["equal"]


def test_what_has_come_serves_the_next_attempt(tmp_path: Path) -> None:
    giving = _given(tmp_path / "a")
    snapshot = giving.replica("c").snapshot()
    total = sum(file.bytes for file in snapshot.files)
    carried = 0
    for attempt in range(4):  # each is cut, and the process ends
        with replica_at(tmp_path / "b") as target:
            incoming = target.receive(snapshot.position, snapshot.files)
            for at, file in enumerate(snapshot.files):
                while (offset := incoming.have(at)) < file.bytes and carried < total * (attempt + 1) // 5:
                    data = snapshot.read(at, offset, min(4_096, file.bytes - offset))
                    incoming.write(at, offset, data)
                    carried += len(data)
            incoming.close()
    with replica_at(tmp_path / "b") as target:
        incoming = target.receive(snapshot.position, snapshot.files)
        carried += carry(snapshot, incoming)
        incoming.install()
        assert carried == total, "nothing went over twice"
        assert target.digest() == giving.replica("c").digest()
    giving.close()


def test_pieces_of_another_snapshot_go_and_common_ones_stay(tmp_path: Path) -> None:
    giving = _given(tmp_path / "a", 150)
    source = giving.replica("c")
    first = source.snapshot()
    play(source, LOG)
    second = source.snapshot()
    common = {(file.checksum, file.bytes) for file in first.files} & {(file.checksum, file.bytes)
                                                                     for file in second.files}
    assert common
    with replica_at(tmp_path / "b") as target:
        carry(first, target.receive(first.position, first.files))
        incoming = target.receive(second.position, second.files)
        carried = carry(second, incoming)
        assert carried == sum(size for checksum, size in {(file.checksum, file.bytes) for file in second.files}
                              - common)
        wanted = {f"{file.checksum:016x}-{file.bytes}" for file in second.files if file.bytes}
        assert set(os.listdir(target.home.incoming)) == wanted | {POSITION}
        incoming.install()
        assert target.position().log_index == 200
    giving.close()


def test_a_damaged_piece_is_refused_and_forgotten(tmp_path: Path) -> None:
    giving = _given(tmp_path / "a")
    snapshot = giving.replica("c").snapshot()
    with replica_at(tmp_path / "b") as target:
        play(target, LOG, 10)
        before = target.digest()
        for at in range(0, len(snapshot.files), 2):
            incoming = target.receive(snapshot.position, snapshot.files)
            carry(snapshot, incoming)
            piece = target.home.incoming / f"{snapshot.files[at].checksum:016x}-{snapshot.files[at].bytes}"
            flip_byte(piece, snapshot.files[at].bytes // 2)
            incoming = target.receive(snapshot.position, snapshot.files)  # as after a restart: nothing is trusted
            with pytest.raises(DataCorrupted):
                incoming.install()
            assert not piece.exists()
            assert target.digest() == before
        assert carry(snapshot, incoming) == snapshot.files[at].bytes
        incoming.install()
        assert target.digest() == giving.replica("c").digest()
    giving.close()


@pytest.mark.parametrize("position", [Position(199, 4), Position(200, 5), Position(0, 0)])
def test_a_snapshot_that_is_not_of_the_place_it_says_is_refused(tmp_path: Path, position: Position) -> None:
    giving = _given(tmp_path / "a")
    snapshot = giving.replica("c").snapshot()
    with replica_at(tmp_path / "b") as target:
        incoming = target.receive(position, snapshot.files)
        carry(snapshot, incoming)
        with pytest.raises(DataCorrupted):
            incoming.install()
        assert target.position() == Position(0, 0)
        assert target.apply(1, 1, LOG[0]) is not None, "it goes on"
    giving.close()


@pytest.mark.parametrize("name", ["../evil", "rows/../../evil", "/etc/evil", "STATE", "rows/..", "segments/1/x.vdb"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with replica_at(tmp_path / "b") as target:
        _, checksum = 3, hash_file(_file(tmp_path / "f", b"abc"))[1]
        incoming = target.receive(Position(5, 1), [SnapshotFile(name, 3, checksum)])
        incoming.write(0, 0, b"abc")
        with pytest.raises(DataCorrupted):
            incoming.install()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "f"]


def _file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_snapshot_without_its_rows_or_segments_is_refused(tmp_path: Path) -> None:
    giving = _given(tmp_path / "a")
    snapshot = giving.replica("c").snapshot()
    with replica_at(tmp_path / "b") as target:
        for kept in ("rows/", "segments/"):
            files = [file for file in snapshot.files if file.name.startswith(kept)]
            incoming = target.receive(snapshot.position, files)
            for at, file in enumerate(files):
                whole = next(n for n, other in enumerate(snapshot.files) if other == file)
                incoming.write(at, 0, snapshot.read(whole, 0, file.bytes))
            with pytest.raises(DataCorrupted):
                incoming.install()
        assert target.position() == Position(0, 0)
        assert sorted(os.listdir(target.home.folder)) == ["00000001", "STATE"]
    giving.close()


def test_what_is_damaged_is_not_given_away(tmp_path: Path) -> None:
    giving = _given(tmp_path / "a")
    source = giving.replica("c")
    for index in source.home.folder.glob("*/segments/*/index.vdb"):
        flip_byte(index, index.stat().st_size // 2)
    snapshot = source.snapshot()
    assert not any(file.name.endswith("index.vdb") for file in snapshot.files), "an index is made from the rest"
    with replica_at(tmp_path / "b", background=True) as target:
        incoming = target.receive(snapshot.position, snapshot.files)
        carry(snapshot, incoming)
        incoming.install()
        assert target.verify()["equal"]
    vectors = next(source.home.folder.glob("*/segments/*/vectors.vdb"))
    flip_byte(vectors, vectors.stat().st_size // 2)
    with pytest.raises(DataCorrupted):
        source.snapshot()
    assert os.listdir(source.home.snapshots) == [snapshot.folder.name], "only the one that was given"
    with pytest.raises(StorageError):
        source.apply(201, 4, LOG[0])
    with pytest.raises(DataCorrupted):
        giving.replica("c")
    giving.set_aside("c")
    assert giving.replica("c").position() == Position(0, 0)
    giving.close()


def test_old_views_stay_readable_and_reads_find_the_new_state(tmp_path: Path) -> None:
    giving, taking = _given(tmp_path / "a"), _given(tmp_path / "b", 60)
    target, old = taking.replica("c"), taking.replica("c").service
    view = old.view
    ordinals = [np.arange(min(one.count, 5)) for one in view.segments]
    before = [one.vectors(some).copy() for one, some in zip(view.segments, ordinals, strict=True)]
    ended, failures, asked = threading.Event(), [], [0]

    def ask() -> None:
        rng = np.random.default_rng(1)
        while not ended.is_set():
            try:
                taking.query("c", QueryRequest(rng.standard_normal((1, DIM)).astype(np.float32), k=3,
                                               include_metadata=True))
                taking.count("c")
                asked[0] += 1
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    snapshot = giving.replica("c").snapshot()
    for _ in range(4):
        incoming = target.receive(snapshot.position, snapshot.files)
        carry(snapshot, incoming)
        incoming.install()
    ended.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert asked[0] > 0
    assert target.service is not old
    for one, some, vectors in zip(view.segments, ordinals, before, strict=True):
        assert (one.vectors(some) == vectors).all()
    assert records_of(taking) == records_of(giving)
    taking.close()
    giving.close()


def test_where_memory_does_not_suffice_for_two_states_the_old_one_makes_room(tmp_path: Path) -> None:
    giving, taking = _given(tmp_path / "a"), open_replicas(tmp_path / "b", memory_bytes=1)
    taking.host(SCHEMA, FOLDER)
    target = taking.replica("c")
    play(target, LOG, 60)
    old, before = target.service, target.digest()
    pinned = old.view
    snapshot = giving.replica("c").snapshot()
    incoming = target.receive(Position(199, 4), snapshot.files)
    carry(snapshot, incoming)
    with pytest.raises(StorageError):  # it is not of that place, and the old state is gone from memory
        incoming.install()
    assert old.view.segments[0].count == 0
    assert pinned.segments[0].count > 0
    target = taking.replica("c")
    assert target.digest() == before, "the old state is what the disk has"
    incoming = target.receive(snapshot.position, snapshot.files)
    carry(snapshot, incoming)
    seen = []
    real = ShardService.let_go

    def let_go(service: ShardService) -> None:
        real(service)
        with pytest.raises(Unavailable):
            taking.count("c")
        seen.append(service)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardService, "let_go", let_go)
        incoming.install()
    assert len(seen) == 1
    assert target.digest() == giving.replica("c").digest()
    assert taking.replica("c") is target
    assert records_of(taking) == records_of(giving)
    taking.close()
    giving.close()


def test_pieces_that_the_log_has_passed_are_forgotten(tmp_path: Path) -> None:
    giving = _given(tmp_path / "a", 100)
    snapshot = giving.replica("c").snapshot()
    with replica_at(tmp_path / "b") as target:
        incoming = target.receive(snapshot.position, snapshot.files)
        incoming.write(0, 0, snapshot.read(0, 0, 10))
        incoming.close()
        play(target, LOG, 99)
        target.checkpoint()
        assert target.home.incoming.exists()
        play(target, LOG, 100)
        target.checkpoint()
        assert not target.home.incoming.exists()
        incoming.write(0, 0, snapshot.read(0, 0, 10))  # one that was under way does no harm
        assert target.failure is None
    giving.close()


INSTALLER = """
import os, shutil, sys
from pathlib import Path

import orjson

from tests.replicas import open_replicas
from vecdb.ports.replicator import Position, SnapshotFile

work, last, old, new = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
position, files = orjson.loads((work / "offer").read_bytes())

def install(step):
    # in a process of its own: what is asked of the disk is counted, and at one of these steps everything ends
    steps = 0
    def counted(name, module):
        real = getattr(module, name)
        def wrapper(*args, **kwargs):
            nonlocal steps
            steps += 1
            if steps == step:
                os._exit(9)
            return real(*args, **kwargs)
        setattr(module, name, wrapper)
    replica = open_replicas(work / "b").replica("c")
    incoming = replica.receive(Position(*position), [SnapshotFile(*file) for file in files])
    for name in ("link", "mkdir", "replace", "fsync", "unlink", "rmdir"):
        counted(name, os)
    counted("rmtree", shutil)
    incoming.install()

def look(step):
    replica = open_replicas(work / "b").replica("c")
    index = replica.position().log_index
    assert replica.verify()["equal"]
    assert replica.digest().digest == {20: old, last: new}[index]
    assert sorted(set(os.listdir(replica.home.folder)) - {"incoming"}) == [replica.home.state().name, "STATE"]
    print(index, flush=True)

def forked(what, step):
    pid = os.fork()
    if pid == 0:
        try:
            what(step)
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

step, ended = 0, 9
while ended == 9:
    step += 1
    shutil.rmtree(work / "b", ignore_errors=True)
    shutil.copytree(work / "begin", work / "b")
    ended = forked(install, step)
    assert forked(look, step) == 0, step
assert ended == 0, ended
"""


def test_killed_at_any_step_of_an_install_the_old_state_or_the_new_is_there(tmp_path: Path) -> None:
    last = 60
    giving = open_replicas(tmp_path / "a")
    giving.host(SCHEMA, FOLDER)
    play(giving.replica("c"), LOG, 30)
    giving.optimize("c")
    play(giving.replica("c"), LOG, last)
    new, snapshot = giving.replica("c").digest().digest, giving.replica("c").snapshot()
    assert any(file.name.endswith("vectors.vdb") for file in snapshot.files)
    with replica_at(tmp_path / "begin") as target:
        play(target, LOG, 20)
        old = target.digest().digest
        carry(snapshot, target.receive(snapshot.position, snapshot.files))
    giving.close()
    (tmp_path / "offer").write_bytes(orjson.dumps([list(snapshot.position), [list(file) for file in snapshot.files]]))
    done = subprocess.run([sys.executable, "-c", INSTALLER, str(tmp_path), str(last), old, new], cwd=ROOT,
                          capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-4_000:]
    found = [int(line) for line in done.stdout.split()]
    assert found.count(20) > 10
    assert found.count(last) > 3
    assert found == sorted(found), "the change happens once, at one step"
