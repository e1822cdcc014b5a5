"""Whole clusters in one thread on virtual time: the real replication, a world that fails as told by a seed.

**The world**: :mod:`~vecdb.testing.world` has time, chance and the trace; :mod:`~vecdb.testing.network` the faults of
wires; :mod:`~vecdb.testing.disk` stores that forget what was not synced, :mod:`~vecdb.testing.files` disks with folders
on them and power cuts at any step, :mod:`~vecdb.testing.synced` what of real files is on stable storage;
:mod:`~vecdb.testing.loop` asyncio on virtual time, with executors that have no threads.

**Three kinds of cluster**, one tier on the other:

- registers (:mod:`~vecdb.testing.register`) on the real Raft core: :mod:`~vecdb.testing.cluster` has nodes that crash,
  pause and come back, :mod:`~vecdb.testing.clients` those who use it and write down what they were told,
  :mod:`~vecdb.testing.nemesis` what goes wrong;
- the product's shard replicas in the registers' place (:mod:`~vecdb.testing.shard_sim`, :mod:`~vecdb.testing.shards`):
  segments are sealed and merged, snapshots installed, states and files damaged;
- whole nodes (:mod:`~vecdb.testing.service_sim`, :mod:`~vecdb.testing.service_node`): founding, the control group,
  hosting, calls handed on, collections made and dropped, disks that are full, damaged and lost.

**The judges** stand apart and share nothing with what they judge but its records: :mod:`~vecdb.testing.checks` hears
every commit, :mod:`~vecdb.testing.shard_checks` holds every outcome, state and answer against a dictionary
(:mod:`~vecdb.testing.model`), :mod:`~vecdb.testing.service_checks` explains what clients saw, and
:mod:`~vecdb.testing.linear` searches histories.  For each of them a rule of the product is taken away in
``tests/sim/*mutants.py``, and they notice.  :mod:`~vecdb.testing.sim` runs seeds.

Beside them :mod:`~vecdb.testing.replicator`, the ``Replicator`` port without Raft, for tests of what stands on it.

The same seed and the same commit give the same run, event by event, in any process: nothing here iterates a set, reads
a clock or uses another random source than the world's.

**What is simulated and what is not.**  RocksDB is imitated: batches are lost from the end, blocks become unreadable, a
store that has refused takes nothing more.  Threads run one after another, so races inside a process are for other
tests, as are gRPC, TLS and real kernels (``tests/chaos``).
"""
