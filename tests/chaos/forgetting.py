"""Power cuts without cutting power: what a process did below a directory and had not synced is undone.

``forget.c`` notes in a journal what the process does and syncs.  :meth:`Layer.cut`, called once the process is dead,
plays the journal back over the tree as it was when the layer began and leaves what a file system may leave: everything
that was synced, and of the rest a part chosen by a random source.

- A file's bytes count when the file was fsynced or fdatasynced after they were written.  The others are kept, lost
  (what stood there before comes back) or torn, sector by sector; the file's size lies anywhere between.
- A name (made, removed, renamed, linked) counts when its directory was fsynced afterwards; of the later changes in one
  directory a prefix survives, in each directory another one.  A rename between two directories happens in both or in
  neither.  This is what POSIX allows and less than ext4 or XFS do, where an fsync commits all names before it.
- What went through mmap or stdio is seen less sharply: pages of a mapping not synced since are kept or zero; files of
  streams (RocksDB's LOG) stay.
"""

import hashlib
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).with_name("forget.c")
SECTOR = 512
PAGE = 4096
_HEAD = struct.Struct("<IIQQqqq")
_CREATE, _MKDIR, _UNLINK, _RMDIR, _RENAME, _LINK, _WRITE, _TRUNCATE, _BEGIN, _END, _MAPPED, _LOOSE = range(1, 13)


def compiler() -> list[str] | None:
    """A C compiler's command, if there is one: the system's, or the one of the ziglang package."""
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    try:
        import ziglang  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        return None
    return [sys.executable, "-m", "ziglang", "cc"]


def built(folder: Path, source: Path = SOURCE) -> Path:
    """The layer (or another library) as a shared object in ``folder``, compiled unless it is there."""
    command = compiler()
    if command is None:
        raise FileNotFoundError("no C compiler: cc, gcc, clang or the ziglang package")
    made = folder / f"{source.stem}-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}.so"
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        fresh = made.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-O2", "-shared", "-fPIC", "-o", str(fresh), str(source), "-ldl", "-lpthread"],
                       check=True, capture_output=True, timeout=120)
        os.replace(fresh, made)
    return made


@dataclass(eq=False)
class _Change:
    """What a write or a truncation did to a file: enough to undo it."""

    offset: int
    size: int
    before: bytes


@dataclass(eq=False)
class _File:
    ino: int
    pending: list[_Change] = field(default_factory=list)
    begun: dict[int, int] = field(default_factory=dict)
    mapped: bool = False
    loose: bool = False


@dataclass(eq=False)
class _Naming:
    """One change of names, in one directory or two."""

    number: int
    changes: list[tuple["_Folder", str, "_File | _Folder | None"]]
    durable: bool = False


@dataclass(eq=False)
class _Folder:
    ino: int
    mode: int = 0o755
    first: dict[str, "_File | _Folder"] = field(default_factory=dict)
    now: dict[str, "_File | _Folder"] = field(default_factory=dict)
    namings: list[_Naming] = field(default_factory=list)
    begun: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Cut:
    """What a power cut took: changes of names undone, files whose bytes are not what they were, and those bytes."""

    names: int = 0
    files: int = 0
    bytes: int = 0
    records: int = 0


class Missed(AssertionError):
    """The layer did not see something it should have: the harness is at fault, not who was watched."""


class Layer:
    """Watches processes that work below ``root``; ``state``: a directory of its own on the same file system.

    ``sync``: what becomes of an fsync: "done", "none" (noted alone: nobody's power really goes) or
    "lies" (not even that).
    """

    def __init__(self, root: Path, state: Path, library: Path, *, sync: str = "none") -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.state, self._library, self._sync = root.resolve(), state.resolve(), library, sync
        self.begin()

    def environment(self) -> dict[str, str]:
        """Variables for the process that is to be watched."""
        return {"LD_PRELOAD": str(self._library), "FORGET_ROOT": str(self.root), "FORGET_STATE": str(self.state),
                "FORGET_FSYNC": self._sync}

    def slow(self, ms: int) -> None:
        """From now on each sync takes so long, also those that wait already; 0: as long as the disk itself takes."""
        (self.state / "slow.new").write_text(str(ms), encoding="ascii")
        os.replace(self.state / "slow.new", self.state / "slow")

    def begin(self) -> None:
        """Take the tree as it is for what is on stable storage; nothing may run on it."""
        shutil.rmtree(self.state, ignore_errors=True)
        (self.state / "graves").mkdir(parents=True)
        self._inodes: dict[int, _File | _Folder] = {}
        self._top = self._walk(self.root)

    def _walk(self, path: Path) -> _Folder:
        status = path.stat()
        made = _Folder(status.st_ino, status.st_mode & 0o7777)
        self._inodes[made.ino] = made
        with os.scandir(path) as found:
            for one in found:
                if one.is_dir(follow_symlinks=False):
                    made.now[one.name] = self._walk(Path(one.path))
                elif one.is_file(follow_symlinks=False):
                    ino = one.inode()
                    made.now[one.name] = self._inodes.setdefault(ino, _File(ino))
                else:
                    raise Missed(f"{one.path} is neither a file nor a directory")
        made.first = dict(made.now)
        return made

    def cut(self, rng: random.Random) -> Cut:
        """Leave what a power cut may have left, and begin anew from that; nothing may run on the tree."""
        cut = Cut()
        for record in self._journal():
            cut.records += 1
            self._replay(*record)
        where = self._located()
        fresh = self.root.with_name(self.root.name + ".cut")
        shutil.rmtree(fresh, ignore_errors=True)
        included = self._included(rng, cut)
        files: dict[int, tuple[Path, _File]] = {}
        self._build(self._top, fresh, included, where, files)
        for path, file in files.values():
            _roll_back(path, file, rng, cut)
        shutil.rmtree(self.root)
        os.rename(fresh, self.root)
        self.begin()
        return cut

    def _journal(self) -> Iterator[tuple[int, int, int, int, int, bytes]]:
        try:
            data = memoryview((self.state / "journal").read_bytes())
        except FileNotFoundError:
            return
        at = 0
        while at + _HEAD.size <= len(data):
            size, kind, ino, token, offset, _, before = _HEAD.unpack_from(data, at)
            if at + size > len(data):
                return  # killed while it was written: what it tells of had not begun
            yield kind, ino, token, offset, before, bytes(data[at + _HEAD.size: at + size])
            at += size

    def _replay(self, kind: int, ino: int, token: int, offset: int, size: int, more: bytes) -> None:
        if kind in (_WRITE, _TRUNCATE, _MAPPED, _LOOSE):
            node = self._inodes.get(ino)
            if isinstance(node, _File):
                if kind == _MAPPED:
                    node.mapped = True
                elif kind == _LOOSE:
                    node.loose = True
                else:
                    node.pending.append(_Change(offset, size, more))
        elif kind in (_BEGIN, _END):
            self._synced(self._inodes.get(ino), token, end=kind == _END)
        else:
            self._named(kind, ino, [os.fsdecode(part) for part in more.split(b"\0")])

    @staticmethod
    def _synced(node: _File | _Folder | None, token: int, *, end: bool) -> None:
        if isinstance(node, _File):
            if not end:
                node.begun[token] = len(node.pending)
                return
            count = node.begun.pop(token, 0)
            del node.pending[:count]
            node.begun = {other: max(0, seen - count) for other, seen in node.begun.items()}
            node.mapped = False
        elif isinstance(node, _Folder):
            if not end:
                node.begun[token] = len(node.namings)
            else:
                for naming in node.namings[: node.begun.pop(token, 0)]:
                    naming.durable = True

    def _find(self, name: str) -> tuple[_Folder, str]:
        """The folder that holds a name, as of now, and the name's last part."""
        *parents, last = name.split("/")
        folder = self._top
        for part in parents:
            inner = folder.now.get(part)
            if not isinstance(inner, _Folder):
                raise Missed(f"{name}: there is no folder {part}")
            folder = inner
        return folder, last

    def _named(self, kind: int, ino: int, names: list[str]) -> None:
        changes: list[tuple[_Folder, str, _File | _Folder | None]] = []
        if kind in (_CREATE, _MKDIR):
            made = self._inodes[ino] = _File(ino) if kind == _CREATE else _Folder(ino)
            changes.append((*self._find(names[0]), made))
        elif kind in (_UNLINK, _RMDIR):
            changes.append((*self._find(names[0]), None))
        else:
            old, new = names
            if old:
                folder, last = self._find(old)
                node = folder.now.get(last)
                if node is None:
                    raise Missed(f"{old} was not there to be moved or linked")
                if kind == _RENAME:
                    changes.append((folder, last, None))
            else:
                node = self._inodes[ino] = _File(ino)  # from outside: taken for stable
            if new:
                changes.append((*self._find(new), node))
        naming = _Naming(sum(len(folder.namings) for folder, _, _ in changes), changes)
        for folder in {id(folder): folder for folder, _, _ in changes}.values():
            folder.namings.append(naming)
        for folder, last, node in changes:
            if node is None:
                folder.now.pop(last, None)
            else:
                folder.now[last] = node

    def _folders(self) -> list[_Folder]:
        """All that are or were, whatever has become of them."""
        seen: dict[int, _Folder] = {}
        rest = [self._top]
        while rest:
            folder = rest.pop()
            if id(folder) in seen:
                continue
            seen[id(folder)] = folder
            nodes = [*folder.first.values(), *(node for naming in folder.namings for _, _, node in naming.changes)]
            rest += [node for node in nodes if isinstance(node, _Folder)]
            rest += [other for naming in folder.namings for other, _, _ in naming.changes]
        return list(seen.values())

    def _included(self, rng: random.Random, cut: Cut) -> set[int]:
        """By id the changes of names that survive: of each folder a prefix, with all that is durable in it."""
        folders = self._folders()
        included: set[int] = set()
        for folder in folders:
            least = max((at + 1 for at, one in enumerate(folder.namings) if one.durable), default=0)
            mood = rng.random()
            upto = least if mood < 0.4 else len(folder.namings) if mood < 0.7 else rng.randint(
                least, len(folder.namings))
            included.update(id(one) for one in folder.namings[:upto])
        grown = True
        while grown:
            grown = False
            for folder in folders:
                last = max((at for at, one in enumerate(folder.namings) if id(one) in included), default=-1)
                before = {id(one) for one in folder.namings[: last + 1]}
                if not before <= included:
                    included |= before
                    grown = True
        cut.names = len({id(one) for folder in folders for one in folder.namings} - included)
        return included

    def _located(self) -> dict[int, Path]:
        where: dict[int, Path] = {}
        for top in (self.state / "graves", self.root):
            for folder, _, files in os.walk(top):
                for name in files:
                    path = Path(folder, name)
                    where[path.lstat().st_ino] = path
        return where

    def _build(self, node: _Folder, path: Path, included: set[int], where: dict[int, Path],
               files: dict[int, tuple[Path, _File]]) -> None:
        path.mkdir(mode=node.mode)
        path.chmod(node.mode)
        entries = dict(node.first)
        for naming in node.namings:
            if id(naming) in included:
                for folder, name, what in naming.changes:
                    if folder is node and what is None:
                        entries.pop(name, None)
                    elif folder is node and what is not None:
                        entries[name] = what
        for name, what in entries.items():
            if isinstance(what, _Folder):
                self._build(what, path / name, included, where, files)
                continue
            if what.ino not in where:
                raise Missed(f"{path / name}: its file is gone")
            os.link(where[what.ino], path / name)
            files[what.ino] = path / name, what


def _roll_back(path: Path, file: _File, rng: random.Random, cut: Cut) -> None:
    if file.loose or not (file.pending or file.mapped):
        return
    now = path.read_bytes()
    stable = bytearray(now)
    for change in reversed(file.pending):
        _resize(stable, change.size)
        stable[change.offset: change.offset + len(change.before)] = change.before
    left = _torn(bytes(stable), now, rng)
    if file.mapped:
        pages = range(0, len(left), PAGE)
        left = b"".join(left[at: at + PAGE] if rng.random() < 0.5 else bytes(len(left[at: at + PAGE])) for at in pages)
    if left != now:
        cut.files += 1
        cut.bytes += abs(len(now) - len(left)) + sum(one != other for one, other in zip(
            _sectors(now), _sectors(left), strict=False)) * SECTOR
        with path.open("r+b") as out:
            out.truncate(0)
            out.write(left)


def _torn(stable: bytes, now: bytes, rng: random.Random) -> bytes:
    """Somewhere between two contents of a file."""
    mood = rng.random()
    if mood < 0.35:
        return stable
    if mood < 0.5:
        return now
    low, high = sorted((len(stable), len(now)))
    size = rng.choice((low, high, rng.randint(low, high), min(high, -(-rng.randint(low, high) // SECTOR) * SECTOR)))
    left = bytearray(stable[:size])
    _resize(left, size)
    # Either what stands first has arrived, or sectors in no order; what has not arrived beyond the old end is zero.
    arrived = rng.random()
    border = rng.randint(0, size)
    for at in range(0, size, SECTOR):
        here = at < border if mood < 0.75 else rng.random() < arrived
        if here:
            left[at: min(at + SECTOR, size)] = now[at: min(at + SECTOR, size)].ljust(min(SECTOR, size - at), b"\0")
    return bytes(left)


def _resize(data: bytearray, size: int) -> None:
    if len(data) > size:
        del data[size:]
    else:
        data.extend(bytes(size - len(data)))


def _sectors(data: bytes) -> Iterator[bytes]:
    return (data[at: at + SECTOR] for at in range(0, len(data), SECTOR))
