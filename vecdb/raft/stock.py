"""PySyncObj 0.3.17's ``SyncObj`` as it is, and every private name of it that vecdb touches: all name-mangled access is
in this module.

The class is not used as it ships: its rules lose acknowledged writes, and its messages are pickles.  What stays of the
original is the state of a replica (role, term, vote, leader, log, commit and applied index, election deadline), the
arithmetic on its log, how a term and a vote are stored, how a state is entered and how a leadership begins (with a
no-op of its own term, line 1215).  What is overridden, with the line of the original
and the rule of the Raft paper (R: Ongaro & Ousterhout 2014) or of the dissertation (D: Ongaro 2014) that is restored
(``__name`` stands for ``_SyncObj__name``):

================================  =====  ==============================================================================
``_onTick``, ``doTick``             611  elections, commit rule, applying and polling of sockets in one step; now
                                         :meth:`RaftCore.tick`: pre-vote before an election (D 9.6), check quorum at
                                         the election timeout (D 6.2), the leader counts itself only for entries that
                                         are synced (D 10.2.1), learners never (D 4.2.1)
``__onMessageReceived``             909  acknowledgements are not held against the term (R 5.1); votes that arrive
                                         twice count twice (R 5.2); entries that match are deleted (R fig. 2,
                                         AppendEntries 3 and 4); a stale leader gets no answer (R 5.1); now one method
                                         a message
``__sendNextNodeIdx``              1098  acknowledgements without a term (R 5.1); now :class:`Appended`
``__sendAppendEntries``            1251  pickles, loops on the clock, rewinds below the match, no flow control; now one
                                         ``Progress`` a follower
``__generateRaftTimeout``          1108  the process's random source; now the injected one
``__applyLogEntries``               708  an apply or a callback that raises is run again (R 5.3: applied once, in
                                         order)
``__doApplyCommand``                870  unpickles; now bytes go to the state machine, membership to ours
``__parseChangeClusterRequest``    1415  unpickles
``__changeCluster``                1356  several changes may be uncommitted (D 4.1)
``__doChangeCluster``              1374  undone by doing the reverse; ours are read off the log (D 4.1)
``__tryLogCompaction``             1421  dumps by fork; ours truncates below a flushed checkpoint
``__loadDumpFile``                 1472  unpickles; drops a journal that is older than the dump
``_checkCommandsToApply``           503  forwards to a leader; a lost message leaves the caller waiting for ever
``_applyCommand``                   492  enters the queue of the former
``setCodeVersion``                  353  pickles
``addNodeToCluster``                370  pickles
``removeNodeFromCluster``           386  pickles
``transferLeadership``              415  no end to a transfer that fails (D 3.10)
================================  =====  ==============================================================================

The one patch of the module: ``createJournal`` (line 166) returns a journal that is given as an object.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final, NoReturn

import pysyncobj.syncobj as original
from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.journal import Journal
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from vecdb.core.errors import Unsupported

SOURCE_SHA256: Final = "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4"

FOLLOWER: Final = 0
CANDIDATE: Final = 1
LEADER: Final = 2

_create_journal = original.createJournal
original.createJournal = lambda given: given if isinstance(given, Journal) else _create_journal(given)


@cache
def check_source() -> None:
    """Raise ``Unsupported`` unless the installed source is the one these overrides were written against."""
    found = hashlib.sha256(Path(original.__file__).read_bytes()).hexdigest()
    if found != SOURCE_SHA256:
        raise Unsupported("the installed pysyncobj is not the one vecdb is written against (0.3.17)",
                          found=found, needed=SOURCE_SHA256)


def _held(name: str) -> Any:
    """A name of ours for one of the original's private attributes."""
    private = f"_SyncObj__{name}"

    def read(self: Any) -> Any:
        return self.__dict__[private]

    def write(self: Any, value: Any) -> None:
        self.__dict__[private] = value

    return property(read, write)


class _NoTransport(Transport):  # type: ignore[misc]  # untyped base
    """The original talks to nobody: messages leave by the core's outbox."""

    def __init__(self) -> None:
        super().__init__(None, None, None)


class Stock(SyncObj):  # type: ignore[misc]  # untyped base
    """The original's state under our names, its own ways in and out closed."""

    role: int = _held("raftState")
    term: int = _held("raftCurrentTerm")
    vote: str | None = _held("votedForNodeId")
    election_deadline: float = _held("raftElectionDeadline")
    commit: int = _held("raftCommitIndex")
    applied: int = _held("raftLastApplied")
    noop_index: int | None = _held("noopIDx")

    def __init__(self, me: str, journal: Journal, election_timeout: Callable[[], float]) -> None:
        check_source()
        self.me = me
        self._election_timeout = election_timeout
        conf = SyncObjConf(autoTick=False, appendEntriesUseBatch=True, pollerType="select", journalFile=journal)
        super().__init__(Node(me), [], conf, nodeClass=Node, transport=_NoTransport())

    @property
    def leader(self) -> str | None:
        """Who leads, as far as this replica knows."""
        node = self.__dict__["_SyncObj__raftLeader"]
        return None if node is None else str(node.id)

    def know_leader(self, leader: str | None) -> None:
        self.__dict__["_SyncObj__raftLeader"] = None if leader is None else Node(leader)

    def store_term(self, term: int, vote: str | None) -> None:
        """Line 1234: into the journal as well; promised only once the journal is synced."""
        self._SyncObj__setCurrentTerm(term, vote)

    def enter(self, role: int) -> None:
        """Line 1239."""
        self._SyncObj__setState(role)

    def begin_leadership(self) -> None:
        """Line 1215: leader of the term, with a no-op as its first entry."""
        self._SyncObj__onBecomeLeader()

    def delete_from(self, index: int) -> None:
        """Line 1201."""
        self._SyncObj__deleteEntriesFrom(index)

    def delete_to(self, index: int) -> None:
        """Line 1208: entries below ``index`` go, its own place stays as the log's base."""
        self._SyncObj__deleteEntriesTo(index)

    # --- overrides: see the table above -----------------------------------------------------------

    def _SyncObj__generateRaftTimeout(self) -> float:  # noqa: N802
        return self._election_timeout()

    def _SyncObj__sendAppendEntries(self) -> None:  # noqa: N802
        """Called where a leadership begins; the turn's end sends."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise Unsupported("the original's way in is closed: vecdb.raft.core has its own")

    _SyncObj__onMessageReceived = _refuse
    _SyncObj__sendNextNodeIdx = _refuse
    _SyncObj__applyLogEntries = _refuse
    _SyncObj__doApplyCommand = _refuse
    _SyncObj__parseChangeClusterRequest = _refuse
    _SyncObj__changeCluster = _refuse
    _SyncObj__doChangeCluster = _refuse
    _SyncObj__tryLogCompaction = _refuse
    _SyncObj__loadDumpFile = _refuse
    _onTick = _refuse  # noqa: N815
    doTick = _refuse  # noqa: N815
    _checkCommandsToApply = _refuse  # noqa: N815
    _applyCommand = _refuse  # noqa: N815
    setCodeVersion = _refuse  # noqa: N815
    addNodeToCluster = _refuse  # noqa: N815
    removeNodeFromCluster = _refuse  # noqa: N815
    transferLeadership = _refuse  # noqa: N815
