"""Logs on a store: a model, power cuts, damage."""

from random import Random

import pytest

from vecdb.core.errors import DataCorrupted
from vecdb.raft.log import Intent, LogStore, entry_key, meta_key
from vecdb.raft.membership import Configuration
from vecdb.storage.rocksdict import RocksStore
from vecdb.testing.disk import MemoryStore

MEMBERS = Configuration.of(["a/1", "b/1", "c/1"])


def entries_of(log):
    return [tuple(entry) for entry in log.read(log.base + 1, log.last, 1 << 30, 1 << 20)]


def put_down(logs):
    batch = logs.take()
    batch.write()
    return logs.done(batch)


class Model:
    """What a log should be."""

    def __init__(self):
        self.base, self.base_term, self.entries, self.term, self.vote = 1, 0, [], 0, None

    def copy(self):
        other = Model()
        other.base, other.base_term, other.term, other.vote = self.base, self.base_term, self.term, self.vote
        other.entries = list(self.entries)
        return other

    def same(self, log):
        assert (log.base, log.base_term) == (self.base, self.base_term)
        assert entries_of(log) == self.entries
        assert (log.getCurrentTerm(), log.getVotedForNodeId()) == (self.term, self.vote)
        assert log.bytes == sum(len(command) for command, _, _ in self.entries)
        assert log.last == self.base + len(self.entries)
        return True


def step(random, model, log):
    last = model.entries[-1][1] if model.entries else model.base
    what = random.randrange(10)
    if what < 5:
        model.term += random.random() < 0.3
        for at in range(random.randint(1, 5)):
            entry = (random.randbytes(random.randint(1, 60)), last + 1 + at, model.term)
            model.entries.append(entry)
            log.add(*entry)
        model.vote = random.choice([None, "a/1", "b/1"])
        log.setCurrentTerm(model.term, model.vote)
    elif what < 7 and model.entries:
        index = random.randint(model.base + 1, last)
        del model.entries[index - model.base - 1:]
        log.deleteEntriesFrom(index - log.base)
    elif what < 9 and log.stable > model.base:
        index = random.randint(model.base + 1, log.stable)
        model.base_term = model.entries[index - model.base - 1][2]
        del model.entries[:index - model.base]
        model.base = index
        log.deleteEntriesTo(index - log.base)
    elif what == 9:
        model.entries, model.base, model.base_term = [], last + random.randint(0, 3), model.term
        log.reset(model.base, model.base_term, MEMBERS)


@pytest.mark.parametrize("seed", range(30))
def test_a_log_is_what_was_done_to_it_and_after_a_power_cut_what_some_batch_left(seed):
    random = Random(seed)
    store = MemoryStore()
    logs = LogStore(store, cache_bytes=100)
    log, model = logs.create(7, 1, MEMBERS), Model()
    other = logs.create(8, 1, MEMBERS)
    put_down(logs)
    for _ in range(60):
        kept = model.copy()
        for _ in range(random.randint(1, 4)):
            step(random, model, log)
            model.same(log)
        other.add(b"x", other.last + 1, 1)
        batch = logs.take()
        if random.random() < 0.8:
            batch.write()
            logs.done(batch)
            assert log.stable == log.last
            continue
        store.write(batch.mutations)
        lost = store.crash(random)
        logs = LogStore(store, cache_bytes=100)
        log, other = logs.open(7), logs.open(8)
        model = kept if lost else model
        model.same(log)
        assert log.stable == log.last


def test_every_flipped_bit_and_every_lost_row_is_noticed():
    store = MemoryStore()
    logs = LogStore(store)
    log = logs.create(7, 3, MEMBERS)
    for index in range(2, 6):
        log.add(b"\x40command", index, 1)
    put_down(logs)
    rows = dict(store.scan(b"", b"\xff"))
    assert len(rows) == 5
    for key, value in rows.items():
        for at in range(len(value) * 8):
            flipped = bytearray(value)
            flipped[at // 8] ^= 1 << at % 8
            store._rows[key] = bytes(flipped)
            with pytest.raises(DataCorrupted):
                LogStore(store).open(7)
        store._rows[key] = value
    for key in rows:
        store._rows.pop(key)
        store._keys.remove(key)
        with pytest.raises(DataCorrupted):
            LogStore(store).open(7)
        store._rows = dict(rows)
        store._keys = sorted(rows)
    assert entries_of(LogStore(store).open(7)) == [(b"\x40command", index, 1) for index in range(2, 6)]


def test_a_row_of_another_place_is_noticed():
    store = MemoryStore()
    logs = LogStore(store)
    log = logs.create(7, 3, MEMBERS)
    log.add(b"\x40one", 2, 1)
    log.add(b"\x40two", 3, 1)
    put_down(logs)
    store._rows[entry_key(7, 2)] = store._rows[entry_key(7, 3)]
    with pytest.raises(DataCorrupted):
        LogStore(store).open(7)


def test_what_is_not_stable_is_not_counted_even_if_it_was_replaced():
    logs = LogStore(MemoryStore())
    log = logs.create(7, 1, MEMBERS)
    put_down(logs)
    log.add(b"\x40a", 2, 1)
    log.add(b"\x40b", 3, 1)
    first = logs.take()
    log.deleteEntriesFrom(2)
    log.add(b"\x40c", 3, 2)
    first.write()
    logs.done(first)
    assert log.stable < 3
    put_down(logs)
    assert log.stable == 3


def test_commands_beyond_the_cache_are_read_back():
    logs = LogStore(MemoryStore(), cache_bytes=50)
    log = logs.create(7, 1, MEMBERS)
    for index in range(2, 40):
        log.add(b"\x40" + bytes([index]) * 9, index, 1)
        put_down(logs)
    log.add(b"\x40last", 40, 1)
    assert sum(command is not None for command in log._commands) <= 7
    assert [command[1] for command, _, _ in entries_of(log)[:-1]] == list(range(2, 40))


def test_the_bound_of_memory_is_for_all_logs_together():
    logs = LogStore(MemoryStore(), cache_bytes=1000)
    many = [logs.create(group, 1, MEMBERS) for group in range(10)]
    for index in range(2, 30):
        for log in many:
            log.add(b"\x40" + bytes([index, log.group]) * 10, index, 1)
        put_down(logs)
    assert logs.cached <= 1000 + 10 * 21
    assert logs.cached == sum(log.cached for log in many)
    for log in many:
        assert [command[1:3] for command, _, _ in entries_of(log)] == [bytes([at, log.group]) for at in range(2, 30)]
        log.deleteEntriesFrom(20)
        log.deleteEntriesTo(5)
    put_down(logs)
    for log in many[:9]:
        logs.close(log)
    assert logs.cached == many[9].cached
    many[9].reset(40, 2, MEMBERS)
    assert logs.cached == 0


def test_a_damaged_log_takes_none_of_that_bound_once_another_stands_in_its_place():
    store = MemoryStore()
    log = LogStore(store).create(7, 3, MEMBERS)
    for index in range(2, 6):
        log.add(b"\x40" + bytes(100), index, 1)
    put_down(log._store)
    store._rows[entry_key(7, 5)] = b"nonsense"
    logs = LogStore(store)
    with pytest.raises(DataCorrupted):
        logs.open(7)
    logs.create(7, 1 << 20, MEMBERS)
    assert logs.cached == 0


def test_an_intent_is_kept_until_the_log_begins_anew():
    store = MemoryStore()
    logs = LogStore(store)
    log = logs.create(7, 1, MEMBERS)
    put_down(logs)
    intent = Intent(50, 3, Configuration.of(["a/1", "d/2"]))
    log.intend(intent)
    assert log.stable_intent is None
    put_down(logs)
    assert log.stable_intent == intent
    again = LogStore(store)
    log = again.open(7)
    assert log.intent == log.stable_intent == intent
    log.reset(50, 3, intent.configuration)
    put_down(again)
    log = LogStore(store).open(7)
    assert (log.intent, log.base, log.base_configuration) == (None, 50, intent.configuration)


def test_groups_are_listed_and_forgotten_in_rocksdb_as_well(tmp_path):
    for store in (MemoryStore(), RocksStore(tmp_path / "log")):
        logs = LogStore(store)
        for group in (1, 2, 1 << 40):
            log = logs.create(group, group % 7, MEMBERS)
            log.add(b"\x40x", 2, 1)
        assert sorted(put_down(logs)) == [1, 2, 1 << 40]
        logs.drop(2)
        put_down(logs)
        assert list(LogStore(store).groups()) == [(1, 1), (1 << 40, (1 << 40) % 7)]
        assert LogStore(store).open(2) is None
        assert entries_of(LogStore(store).open(1 << 40)) == [(b"\x40x", 2, 1)]
        store.close()


def test_all_logs_of_a_turn_are_one_sync(tmp_path):
    store = RocksStore(tmp_path / "log")
    logs = LogStore(store)
    for group in range(20):
        logs.create(group, 1, MEMBERS).add(b"\x40x", 2, 1)
    before = store.stats().syncs
    put_down(logs)
    assert store.stats().syncs == before + 1
    store.close()


def test_a_damaged_meta_row_has_no_number():
    store = MemoryStore()
    logs = LogStore(store)
    logs.create(7, 3, MEMBERS)
    put_down(logs)
    store._rows[meta_key(7)] = b"nonsense"
    assert list(LogStore(store).groups()) == [(7, -1)]
