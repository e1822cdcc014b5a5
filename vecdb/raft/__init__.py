"""Replicas that agree: PySyncObj, hardened, with logs on RocksDB.

**What is promised.**  An acknowledged command is on stable storage of a majority of the group's voters, and every
replica applies the same commands in the same order, each once.  Reads by ``read_index`` see every command that was
acknowledged before they were asked.  Any minority of crashes and power cuts is survived, at any instant; a replica
whose log was damaged says so and comes back as a learner.  A retry is applied once if the state machine knows its key.

**What is not.**  Order between groups; how long a failover takes on a starved machine; disks that lie about fsync; a
majority of damaged logs; a whole data directory put back from an old copy.  What is promised is promised shard by
shard: where there are more nodes than replicas, and a collection is dropped and made anew under its name while nodes
that hold a majority of the old shard are cut off from the control group's, these go on acknowledging writes to the
old shard until they hear of it, and those writes are dropped with it.  Likewise a linearizable read of a name that
somebody else has just dropped and made anew may be answered from the old shard, as long as a majority of its nodes has
not applied the drop; whoever dropped it, or has a token of who did, never sees it again.  Whoever calls a
node's peer port and fails in the TLS handshake (another cluster's authority, none at all, garbage) gets no further and
costs nothing of ours, but is neither counted nor logged: gRPC tells Python of no handshake that failed.  Counted and
logged are the certificates that nodes see when *they* call, and everything that is wrong after the handshake.

**The pieces**, from the inside: :mod:`~vecdb.raft.stock` (the original and what of it is overridden),
:mod:`~vecdb.raft.following`, :mod:`~vecdb.raft.leading` and :mod:`~vecdb.raft.core` (a replica of one group),
:mod:`~vecdb.raft.membership`, :mod:`~vecdb.raft.messages` (the codec), :mod:`~vecdb.raft.log` (all logs of a process
in one store), :mod:`~vecdb.raft.replica` (a core and its state machine), :mod:`~vecdb.raft.snapshots`,
:mod:`~vecdb.raft.host` (all replicas of a process).  None of them knows a clock, a thread, a socket or a random source.

**Decisions.**  Subclassing held: every rule that had to change is a method of its own, and nothing was vendored.
What the original keeps of a leader's view of its followers (sets of nodes, whose order differs from run to run) is not
used.  Messages are one binary form a kind, checked before they are believed; heartbeats of all groups that two nodes
share leave as one frame, because all groups tick together.  Configurations travel whole in the log.  A replica's number
is never used twice, so there is no memory of earlier lives to confuse it with.  A planned replacement adds, waits for
the promotion and then removes: in between there is a voter more, never one less.

**Observers** are how a cluster of a hundred nodes has one control group: three or five vote, all others have its log
and state as well, and cost those a message every third of a second (:mod:`~vecdb.raft.membership`).  Nobody waits for
one.  Heartbeats to voters are what elections depend on, so only theirs are quick.

**Disks that are slow**: those of a minority hold nobody up, a leader's own does, for it answers what it has applied
and applies what it has stored.  One that does not end a sync for as long as an election takes at most makes its node
hand over what it leads (:meth:`~vecdb.raft.host.Host._give_way`); one that is merely slow is told of, by metrics and
to who leads the control group (:mod:`~vecdb.raft.syncing`).

**Measured** (two shared cores, three nodes in one process and one event loop, so a node has a third of it; no gRPC):
64 idle groups cost a node 2 % of a core, 500 groups 12 %; a replica is made in 0.3 ms; with fsync, 64 callers of 100
bytes have 18,000 commits a second, 51 KB commands go at 66 MB/s and 1 MB commands at 80 MB/s.
"""

import _socket
import socket

import pysyncobj.win_inet_pton

# What that module is for is Windows, and it puts its own inet_ntop into the socket module of every other system as
# well, where it raises: whoever in this process then asks for a peer's address in text fails.
assert pysyncobj.win_inet_pton
socket.inet_ntop = _socket.inet_ntop
