"""What is said of the original is so."""

import inspect
import re
import socket
import sys

import pysyncobj.syncobj as original
import pytest

from vecdb.core.errors import Unsupported
from vecdb.raft import stock
from vecdb.raft.core import RaftCore
from vecdb.raft.log import LogStore
from vecdb.raft.membership import Configuration
from vecdb.testing.disk import MemoryStore

LINES = inspect.getsource(original).splitlines()
TABLE = [(name, int(line)) for names, line in re.findall(r"^(``.+``) +(\d+)  ", stock.__doc__, re.MULTILINE)
         for name in re.findall(r"``(\w+)``", names)[:1]]


def private(name):
    return name.replace("__", "_SyncObj__", 1) if name.startswith("__") else name


def test_the_source_is_the_one_that_was_read():
    stock.check_source.cache_clear()
    stock.check_source()


def test_another_source_is_refused(monkeypatch):
    monkeypatch.setattr(stock, "SOURCE_SHA256", "0" * 64)
    stock.check_source.cache_clear()
    try:
        with pytest.raises(Unsupported):
            RaftCore("a/1", LogStore(MemoryStore()).create(1, 1, Configuration()), None, applied=0, clock=lambda: 0.0,
                     random=None, settings=None)
    finally:
        stock.check_source.cache_clear()


@pytest.mark.parametrize(("name", "line"), TABLE)
def test_every_override_that_is_listed_is_one_and_stands_where_it_says(name, line):
    assert f"def {name}(" in LINES[line - 1]
    assert private(name) in vars(stock.Stock)


def test_every_override_is_listed():
    listed = {private(name) for name, _ in TABLE} | {"doTick"}
    ours = {name for name in vars(stock.Stock) if name in vars(original.SyncObj) and name != "__init__"
            and not name.startswith("__")}
    assert ours == listed


def test_lines_that_are_named_hold_what_they_should():
    for line, text in ((166, "createJournal"), (1201, "__deleteEntriesFrom"), (1208, "__deleteEntriesTo"),
                       (1215, "__onBecomeLeader"), (1234, "__setCurrentTerm"), (1239, "__setState")):
        assert text in LINES[line - 1]


def test_the_ways_in_of_the_original_are_closed():
    class Around:
        def touched(self):
            pass

    import random
    core = RaftCore("a/1", LogStore(MemoryStore()).create(1, 1, Configuration()), Around(), applied=0,
                    clock=lambda: 0.0, random=random.Random(1), settings=stock_settings())
    for name in ("doTick", "setCodeVersion", "addNodeToCluster", "removeNodeFromCluster", "transferLeadership",
                 "_applyCommand", "_onTick", "_SyncObj__onMessageReceived", "_SyncObj__doApplyCommand"):
        with pytest.raises(Unsupported):
            getattr(core, name)()


def stock_settings():
    from vecdb.raft.settings import RaftSettings
    return RaftSettings()


def test_no_module_of_ours_calls_a_private_name_outside_the_one_that_lists_them():
    for name, module in sorted(sys.modules.items()):
        if name.startswith("vecdb.raft.") and name != "vecdb.raft.stock":
            assert "_SyncObj__" not in inspect.getsource(module), name


def test_the_socket_module_is_left_as_it_was() -> None:
    import vecdb.raft

    assert vecdb.raft.socket is socket
    assert socket.inet_ntop(socket.AF_INET, b"\x7f\x00\x00\x01") == "127.0.0.1"
    assert socket.inet_ntop(socket.AF_INET6, bytes(15) + b"\x01") == "::1"
