"""Values in files, against a model: power cuts, kills, full and failing disks at any step, readers in between.

The machine knows every state the store may be found in.  Between any two calls of the operating system the power may
go, the disk may refuse, or somebody may read; and while somebody reads, between a row and its value, others may write,
merge sparse files and delete them.
"""

import errno
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vecdb.core.errors import VecdbError
from vecdb.shard.mutations import Mutations
from vecdb.storage import split
from vecdb.storage.split import LARGE_BYTES, SplitStore
from vecdb.testing.disk import MemoryStore

FILE_BYTES = 24_000
FAMILIES = 4
EVERYTHING = b"", b"\xff"
SIZES = 10, LARGE_BYTES, 2 * LARGE_BYTES, 5 * LARGE_BYTES
REFUSALS = errno.ENOSPC, errno.EIO, errno.EDQUOT


class PowerCut(BaseException):
    """Nothing after it happens."""


class Medium:
    """A folder's files, of which a power cut leaves what was synced, and by luck more; deleted files may come back.

    ``step`` is called before everything that changes it.
    """

    def __init__(self, folder: Path, grave: Path) -> None:
        self.folder, self.grave = folder, grave
        self.sizes: dict[int, int] = {}
        self.names: set[str] = set()
        self.step: Callable[[], None] = lambda: None

    def install(self, patch: pytest.MonkeyPatch) -> None:
        real_unlink = Path.unlink

        def opened(path, flags, *mode):
            if flags & os.O_CREAT:
                self.step()
            handle = os.open(path, flags, *mode)
            if flags & os.O_CREAT:
                self.sizes[os.fstat(handle).st_ino] = 0
            return handle

        def writev(handle, parts):
            self.step()
            half = b"".join(parts)[:sum(map(len, parts)) // 2]
            return os.writev(handle, [half])  # the system may take less than it was given

        def flush(handle):
            self.step()
            found = os.fstat(handle)
            self.sizes[found.st_ino] = found.st_size

        def sync_directory(path):
            self.step()
            self.names = set(os.listdir(path))
            for path in self.grave.iterdir():
                real_unlink(path)

        def unlink(path, missing_ok=False):
            if path.parent == self.folder:
                self.step()
                os.rename(path, self.grave / path.name)
            else:
                real_unlink(path, missing_ok)

        def write(handle, data):
            self.step()
            return os.write(handle, data)

        patch.setattr(split, "os", SimpleNamespace(**{**vars(os), "open": opened, "writev": writev, "write": write}))
        patch.setattr(split, "_flush", flush)
        patch.setattr(split, "sync_directory", sync_directory)
        patch.setattr(Path, "unlink", unlink)

    def cut(self, random: Random) -> None:
        """What a power cut leaves is on stable storage from then on."""
        for path in sorted(self.grave.iterdir()):
            if path.name in self.names and random.random() < 0.5:
                os.rename(path, self.folder / path.name)
            else:
                os.remove(path)
        for path in sorted(self.folder.iterdir()):
            if path.name not in self.names and random.random() < 0.5:
                os.remove(path)
                continue
            found = path.stat()
            synced = self.sizes.get(found.st_ino, 0)
            left = random.randint(synced, found.st_size)
            with open(path, "r+b") as file:
                file.truncate(left)
                file.seek(random.randint(synced, left))
                file.write(random.randbytes(left - file.tell()))
            self.sizes[found.st_ino] = left
        self.names = set(os.listdir(self.folder))


class Inner(MemoryStore):
    """Its writes and syncs are steps too, and between a row's reading and its value's something may happen."""

    def __init__(self) -> None:
        super().__init__()
        self.step: Callable[[], None] = lambda: None
        self.meanwhile: Callable[[], None] | None = None

    def write(self, batch):
        self._step()
        super().write(batch)

    def sync(self):
        self._step()
        super().sync()

    def _step(self):
        try:
            self.step()
        except OSError:
            self.failing = True  # as RocksDB: until it is opened anew
            raise

    def multi_get(self, keys):
        rows = super().multi_get(keys)
        self._happens()
        return rows

    def scan(self, start, stop):
        rows = list(super().scan(start, stop))
        self._happens()
        return iter(rows)

    def _happens(self):
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()


def key(family: int, place: int) -> bytes:
    return b"%02d" % family + place.to_bytes(8, "big")


FAMILY, STEPS = st.integers(0, FAMILIES - 1), st.integers(0, 16)
SYNC = st.sampled_from(("none", "counted", "interrupted"))
KINDS = st.sampled_from(("add", "add", "add", "cut front", "cut end", "drop", "drop all", "write anew"))
ACTIONS = st.lists(st.tuples(KINDS, FAMILY, st.sampled_from(SIZES), st.integers(0, 99)), min_size=1, max_size=6)


class Crashes(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(split, "LEAST_BYTES", LARGE_BYTES)
        self.patch.setattr(split, "SPARE_FILES", 0)
        self.top = tempfile.TemporaryDirectory()
        folder, grave = Path(self.top.name, "values"), Path(self.top.name, "grave")
        folder.mkdir()
        grave.mkdir()
        self.inner, self.medium = Inner(), Medium(folder, grave)
        self.medium.install(self.patch)
        self.states: list[dict[bytes, bytes]] = [{}]
        """What may be found: as of the last sync, and after each batch since."""
        self.counter = 0
        self.store = self.opened()

    def opened(self) -> SplitStore:
        return SplitStore(self.inner, self.medium.folder, file_bytes=FILE_BYTES)

    def batch(self, actions) -> tuple[Mutations, dict[bytes, bytes]]:
        """With the state it leads to."""
        before, batch = self.states[-1], Mutations()
        for what, family, size, luck in actions:
            self.counter += 1
            value = (b"%08d" % self.counter * (size // 8 + 1))[:size]
            prefix = b"%02d" % family
            places = sorted(int.from_bytes(one[-8:], "big") for one in before if one.startswith(prefix))
            first, stop = (places[0], places[-1] + 1) if places else (luck, luck)
            if what == "add":
                batch.puts.append((key(family, stop + sum(one.startswith(prefix) for one, _ in batch.puts)), value))
            elif what == "cut front":
                batch.ranges.append((key(family, 0), key(family, first + (stop - first) * luck // 99)))
            elif what == "cut end" and places:
                batch.deletes += [key(family, place) for place in range(max(first, stop - 1 - luck % 3), stop)]
            elif what == "drop":
                batch.ranges.append((key(family, 0), key(family, (1 << 64) - 1)))
            elif what == "drop all":
                batch.ranges.append(EVERYTHING)
            elif what == "write anew" and places:
                batch.puts.append((key(family, places[luck % len(places)]), value))
        after = {one: value for one, value in before.items() if one not in batch.deletes
                 and not any(start <= one < stop for start, stop in batch.ranges)} | dict(batch.puts)
        return batch, after

    def written(self, batch: Mutations, after: dict[bytes, bytes]) -> None:
        self.store.write(batch)
        self.states.append(after)

    def look(self, *allowed: dict[bytes, bytes]) -> None:
        keys = sorted(set().union(*allowed))
        found = dict(zip(keys, self.store.multi_get(keys), strict=True))
        _expect({at: value for at, value in found.items() if value is not None}, *allowed)
        _expect(dict(self.store.scan(*EVERYTHING)), *allowed)

    def at_step(self, step: Callable[[], None]) -> None:
        self.inner.step = self.medium.step = step

    # --- what happens -----------------------------------------------------------------------------

    @rule(actions=ACTIONS, looking=st.booleans())
    def write(self, actions, looking):
        batch, after = self.batch(actions)
        self.at_step((lambda: self.look(self.states[-1], after)) if looking else nothing)
        self.written(batch, after)
        self.at_step(nothing)

    @rule(count=st.integers(1, 8), sync=st.booleans())
    def leave_sparse_files(self, count, sync):
        """One family goes on and is cut, and a value of another that rests stands in each file."""
        for at in range(count):
            self.written(*self.batch([("add", 0, SIZES[-1], 0), ("add", 1 + at % (FAMILIES - 1), SIZES[1], 0)]))
        self.written(*self.batch([("cut front", 0, 0, 99)]))
        if sync:
            self.sync()

    @rule()
    def sync(self):
        self.store.sync()
        self.states = self.states[-1:]
        assert set(self.medium.folder.iterdir()) == set(self.store.files), "a file outlives its values"

    @rule(writes=st.lists(ACTIONS, min_size=1, max_size=4), scanning=st.booleans())
    def overtaken(self, writes, scanning):
        """While somebody reads, files are merged and deleted."""
        before = self.states[-1]
        had: dict[bytes, set[bytes | None]] = {at: {value} for at, value in before.items()}

        def meanwhile():
            for actions in writes:
                self.written(*self.batch(actions))
                for at, values in had.items():
                    values.add(self.states[-1].get(at))
            self.sync()

        self.inner.meanwhile = meanwhile
        found = dict(self.store.scan(*EVERYTHING) if scanning
                     else zip(before, self.store.multi_get(list(before)), strict=True))
        assert self.inner.meanwhile is None
        assert set(found) <= set(before)
        for at, values in had.items():
            assert found.get(at) in values, at

    @rule(actions=ACTIONS, steps=STEPS, sync=SYNC, seed=st.integers(0, 1 << 30))
    def power_cut(self, actions, steps, sync, seed):
        random = Random(seed)
        self.interrupted(actions, sync, steps, PowerCut())
        self.inner.crash(random)
        self.medium.cut(random)
        self.again()

    @rule(actions=ACTIONS, steps=STEPS, sync=SYNC)
    def killed(self, actions, steps, sync):
        self.interrupted(actions, sync, steps, PowerCut())
        self.again()

    @rule(actions=ACTIONS, steps=STEPS, sync=SYNC, number=st.sampled_from(REFUSALS))
    def refused(self, actions, steps, sync, number):
        """After a refused write nothing is promised any more, however well the disk is again; what was is read."""
        if self.interrupted(actions, sync, steps, OSError(number, os.strerror(number))):
            self.at_step(nothing)
            for again in (lambda: self.store.write(Mutations(puts=[(key(9, 9), b"x")])), self.store.sync):
                with pytest.raises(VecdbError):
                    again()
            self.look(*self.states[-2:])
        self.again()

    @rule(steps=STEPS, seed=st.integers(0, 1 << 30))
    def cut_while_opening(self, steps, seed):
        self.store.close()
        self.inner.sync()
        self.at_step(_after(steps, PowerCut()))
        with suppress(PowerCut, VecdbError):
            self.store = self.opened()
        self.medium.cut(Random(seed))
        self.again()

    def interrupted(self, actions, sync: str, steps: int, error: BaseException) -> bool:
        """A batch, and a sync, that end before so many steps, of the sync alone or of both; whether the writer heard
        of it.
        """
        batch, after = self.batch(actions)
        if sync != "interrupted":
            self.at_step(_after(steps, error))
        done = False
        try:
            self.written(batch, after)
            done = True
            if sync == "interrupted":
                self.at_step(_after(steps % 4, error))
            if sync != "none":
                self.store.sync()
                self.states = [after]
        except (PowerCut, VecdbError, OSError):
            if not done:
                self.states.append(after)  # perhaps
            return True
        return False

    def again(self) -> None:
        """Opened anew it holds one of the states that it may."""
        self.store.close()
        self.at_step(nothing)
        self.inner.failing = False
        self.inner.sync()  # RocksDB writes out what it finds in its log before anybody reads it
        self.store = self.opened()
        found = dict(self.store.scan(*EVERYTHING))
        _expect(found, *self.states)
        self.states = [found]
        assert set(self.medium.folder.iterdir()) == set(self.store.files), "files that nobody points to"

    # --- what holds -------------------------------------------------------------------------------

    @invariant()
    def what_was_written_is_read(self):
        self.look(self.states[-1])

    @invariant()
    def files_are_closed(self):
        assert _handles(self.medium.folder) <= 1

    @invariant()
    def each_value_is_in_a_family_of_its_file(self):
        for at, row in self.inner.rows():
            pointer = split._pointed(row)
            if pointer is not None:
                span = self.store._files[pointer.file][at[:-8]]
                assert span.first <= int.from_bytes(at[-8:], "big") <= span.last

    def teardown(self):
        try:
            self.again()
            self.store.write(Mutations(ranges=[EVERYTHING]))
            self.store.sync()
            self.store.close()
            self.opened().close()
            assert list(self.medium.folder.iterdir()) == []
            assert self.inner.rows() == []
            assert _handles(self.medium.folder) == 0
        finally:
            self.patch.undo()
            self.top.cleanup()


def nothing() -> None:
    pass


def _after(steps: int, error: BaseException) -> Callable[[], None]:
    """What lets so many steps be; a power cut is for good."""
    left = [steps]

    def step():
        left[0] -= 1
        if left[0] == -1 or (left[0] < 0 and isinstance(error, PowerCut)):
            raise error

    return step


def _handles(folder: Path) -> int:
    """How many of its files this process has open, where that can be told."""
    found = 0
    for one in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):  # closed meanwhile, by another thread
            found += os.readlink(one).startswith(f"{folder}/")
    return found


def _expect(found: dict[bytes, bytes], *allowed: dict[bytes, bytes]) -> None:
    if found not in allowed:
        one = allowed[-1]
        raise AssertionError(f"gone: {sorted(set(one) - set(found))}, come: {sorted(set(found) - set(one))}, "
                             f"else: {sorted(at for at in set(one) & set(found) if one[at] != found[at])}")


Crashes.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
test_values_in_files_survive_what_disks_and_power_do = Crashes.TestCase
