"""Two stages for the same stories: the stock class, and ours.  Messages are handed over one at a time, by name."""

from collections import defaultdict, deque
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pysyncobj.syncobj as original
from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.journal import FileJournal
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from vecdb.core.errors import OutcomeUnknown
from vecdb.ports.replicator import Position
from vecdb.raft.host import Host
from vecdb.raft.log import LogStore
from vecdb.raft.membership import Change, replica_id
from vecdb.raft.messages import encode_frame, split_frame
from vecdb.raft.settings import RaftSettings
from vecdb.testing.disk import MemoryStore

ALL = 999


class Answer:
    """What a caller was told: ``acked``, ``refused``, ``unknown``, or nothing yet (None)."""

    def __init__(self):
        self.said = None
        self.times = 0

    def tell(self, said):
        self.said = said
        self.times += 1


class Killed(BaseException):
    """kill -9."""


class Stage:
    """What stories need; ``q[a, b]`` holds what is on the way from a to b."""

    def __init__(self, names, tmp_path):
        self.now = 1000.0
        self.names = list(names)
        self.path = Path(tmp_path)
        self.q = defaultdict(deque)
        self.away = {}
        self.applied_by = {}
        """What each machine has applied, in order, outliving nothing."""

    def drop(self, sender, receiver):
        self.q[sender, receiver].clear()

    def deliver(self, sender, receiver, count=ALL):
        while count and self.q[sender, receiver]:
            count -= 1
            message = self.q[sender, receiver].popleft()
            if receiver not in self.away and sender not in self.away:
                self.hand(sender, receiver, message)

    def exchange(self, one, other):
        self.deliver(one, other)
        self.deliver(other, one)

    def settle(self, names, rounds=4, hold=()):
        """Time passes for these, and what they say to each other arrives; ``hold``: ways that do not."""
        for _ in range(rounds):
            self.now += 0.2
            for name in names:
                self.tick(name)
            for sender in names:
                for receiver in names:
                    if sender != receiver and (sender, receiver) not in hold:
                        self.deliver(sender, receiver)

    def leave(self, name):
        """Nothing reaches it, nothing comes from it."""
        self.away[name] = True
        self.cut(name, [other for other in self.names if other != name])

    def come_back(self, name):
        self.away.pop(name)
        for other in self.names:
            self.drop(name, other)
            self.drop(other, name)
        self.join(name, [other for other in self.names if other not in self.away and other != name])

    def cut(self, name, others):
        """The connections end."""

    def join(self, name, others):
        """They are there again."""


# --- stock --------------------------------------------------------------------------------------------


class StockTransport(Transport):
    def __init__(self, stage, me):
        super().__init__(None, None, None)
        self.stage, self.me = stage, me

    def send(self, node, message):
        self.stage.q[self.me, node.id].append(message)
        return True


class StockNode(SyncObj):
    def __init__(self, stage, me, others, **conf):
        self.stage, self.me = stage, me
        self.texts = stage.applied_by.setdefault(me, [])
        self.wire = StockTransport(stage, me)
        super().__init__(Node(me), [Node(one) for one in others],
                         SyncObjConf(autoTick=False, dynamicMembershipChange=True, **conf),
                         nodeClass=Node, transport=self.wire)

    @replicated
    def put(self, text):
        self.texts.append(text)
        if text.startswith("boom"):
            raise ValueError("a bug")
        return text


class StockStage(Stage):
    kind = "stock"

    def __init__(self, names, tmp_path, monkeypatch, batch_bytes=1 << 16, journal=False):
        super().__init__(names, tmp_path)
        monkeypatch.setattr(original, "monotonicTime", lambda: self.now)
        monkeypatch.setattr(original, "random", SimpleNamespace(random=Random(1).random))
        self.conf = {"appendEntriesBatchSizeBytes": batch_bytes}
        self.journal = journal
        self.nodes = {}
        for name in names:
            self.start(name)
        for name in names:
            self.join(name, [other for other in names if other != name])

    def start(self, name, others=None):
        conf = dict(self.conf, journalFile=str(self.path / f"{name}.journal")) if self.journal else self.conf
        self.nodes[name] = StockNode(self, name, others or [one for one in self.names if one != name], **conf)

    def hand(self, sender, receiver, message):
        self.nodes[receiver].wire._onMessageReceived(Node(sender), message)

    def cut(self, name, others):
        for other in others:
            self.nodes[name].wire._onNodeDisconnected(Node(other))
            self.nodes[other].wire._onNodeDisconnected(Node(name))

    def join(self, name, others):
        for other in others:
            self.nodes[name].wire._onNodeConnected(Node(other))
            self.nodes[other].wire._onNodeConnected(Node(name))

    def tick(self, name):
        try:
            self.nodes[name].doTick(0.0)
        except ValueError:
            return  # its loop logs what an apply raises, and goes on

    def elect(self, name, voters):
        self.nodes[name]._SyncObj__raftElectionDeadline = 0
        self.tick(name)
        for voter in voters:
            self.exchange(name, voter)
        assert self.leads(name)

    def leads(self, name):
        return self.nodes[name]._isLeader()

    def term(self, name):
        return self.nodes[name].raftCurrentTerm

    def put(self, name, text):
        answer = Answer()
        self.nodes[name].put(text, callback=lambda _, error: answer.tell("acked" if error == 0 else "unknown"))
        return answer

    def read(self, name):
        """As its users do: ask a leader whether it leads, then read."""
        return list(self.applied(name)) if self.leads(name) else None

    def add(self, name, new):
        answer = Answer()
        self.nodes[name].addNodeToCluster(Node(new), callback=lambda _, error: answer.tell(
            "acked" if error == 0 else "refused"))
        self.tick(name)
        return answer

    def new(self, name, others):
        self.names.append(name)
        self.start(name, [one for one in self.names if one != name])
        self.join(name, others)

    def applied(self, name):
        return self.applied_by[name]

    def log(self, name):
        return [entry[0] for entry in self.nodes[name]._SyncObj__raftLog[:]]

    def holds(self, name, text):
        return any(text.encode() in command for command in self.log(name))

    def compact_and_kill(self, name, keep, at):
        """Truncate to the last ``keep`` entries, and be killed after ``at`` steps of it."""
        node = self.nodes[name]
        journal = node._SyncObj__raftLog
        steps = iter(range(at))
        add = journal.add

        def dying(*entry):
            if next(steps, None) is None:
                raise Killed
            add(*entry)

        journal.add = dying
        try:
            node._SyncObj__deleteEntriesTo(journal[-1][1] - keep)
        except Killed:
            self.killed = True
        journal.flush()

    def restart(self, name):
        self.applied_by[name] = []
        assert isinstance(self.nodes[name]._SyncObj__raftLog, FileJournal)
        self.start(name)


# --- ours ---------------------------------------------------------------------------------------------


class ListMachine:
    def __init__(self, texts, at):
        self.texts = texts
        self.at = at

    def position(self):
        return self.at

    def apply(self, log_index, term, command):
        text = command.decode()
        self.texts.append(text)
        if text.startswith("boom"):
            raise ValueError("a bug")
        self.at = Position(log_index, term)
        return text

    def checkpoint(self):
        return self.at


class StageShell:
    """Disks are quick; what threads have done is told when the stage pumps."""

    def __init__(self, stage, name):
        self.stage, self.name = stage, name
        self.later = deque()

    def send(self, node, frame, *, bulk=False):
        for message in split_frame(frame):
            self.stage.q[self.name, node].append(bytes(message))

    def store(self, batch, done):
        batch.write()
        self.later.append(lambda: done(None))

    def after(self, seconds, act):
        self.later.append(act)

    def run(self, lane, work, done):
        result = work()
        self.later.append(lambda: done(result, None))

    def pump(self):
        while self.later:
            self.later.popleft()()


class OurStage(Stage):
    kind = "ours"

    def __init__(self, names, tmp_path, monkeypatch, batch_bytes=1 << 16, journal=False):
        super().__init__(names, tmp_path)
        self.settings = RaftSettings(batch_bytes=batch_bytes)
        self.nodes, self.stores, self.shells = {}, {}, {}
        self.flushed = {}
        """Where each state was when it was last put on stable storage."""
        self.voters = tuple(sorted(replica_id(name, 1) for name in names))
        for name in names:
            self.start(name, self.voters)

    def start(self, name, voters=()):
        store = self.stores.setdefault(name, MemoryStore())
        shell = self.shells[name] = StageShell(self, name)
        host = self.nodes[name] = Host(name, LogStore(store), shell, clock=lambda: self.now, random=Random(name),
                                       settings=self.settings)
        machine = ListMachine(self.applied_by.setdefault(name, []), self.flushed.get(name, Position(0, 0)))
        host.add(1, machine, number=1, voters=voters)
        host.turn()
        shell.pump()

    def core(self, name):
        return self.nodes[name].replicas[1].core

    def hand(self, sender, receiver, message):
        self.nodes[receiver].receive(sender, encode_frame([message]))
        self.shells[receiver].pump()

    def tick(self, name):
        self.nodes[name].tick()
        self.shells[name].pump()

    def elect(self, name, voters):
        self.now += 3.0
        self.tick(name)
        for _ in range(2):  # first they are asked whether they would
            for voter in voters:
                self.exchange(name, voter)
        assert self.leads(name)

    def leads(self, name):
        return self.core(name).role == 2

    def term(self, name):
        return self.core(name).term

    def _asked(self, name, answer):
        def done(index, result, error):
            answer.tell("acked" if error is None else
                        "unknown" if isinstance(error, OutcomeUnknown) or error.code == "INTERNAL" else "refused")
        return done

    def put(self, name, text):
        answer = Answer()
        self.core(name).propose(text.encode(), self._asked(name, answer))
        return answer

    def read(self, name):
        answer = Answer()
        self.nodes[name].replicas[1].read_index(self._asked(name, answer))
        self.nodes[name].turn()
        self.shells[name].pump()
        return list(self.applied(name)) if answer.said == "acked" else None

    def add(self, name, new):
        answer = Answer()
        self.core(name).change(Change(add=replica_id(new, 1)), self._asked(name, answer))
        self.tick(name)
        return answer

    def new(self, name, others):
        self.names.append(name)
        self.start(name)

    def applied(self, name):
        return self.applied_by[name]

    def holds(self, name, text):
        log = self.core(name).log
        return any(text.encode() in entry.command for entry in log.read(log.base + 1, log.last, 1 << 30, 1 << 20))

    def compact_and_kill(self, name, keep, at):
        host, store = self.nodes[name], self.stores[name]
        core = host.replicas[1].core
        self.flushed[name] = host.replicas[1].machine.checkpoint()
        core.truncate_to(core.log.last - keep)
        batch = host.store.take()
        if at > 0:
            store.write(batch.mutations)
        if at > 1:
            store.sync()
        self.killed = True
        store.crash(Random(at))

    def restart(self, name):
        self.applied_by[name] = []
        self.start(name, self.voters)
