"""Bulk loading: files of records become a snapshot whose shards have their indexes built, without a database.

A billion records cannot go through the logs of a cluster one by one: each would be hashed, written and indexed once on
every replica, while queries wait for the same cores.  So two steps.

**Build** (:func:`~vecdb.bulk.building.build`), on any machine, or on many:

1. *Partition*: each input file is read in batches, its records checked and stored as an upsert would, and appended to
   one spool a shard, by the same hash ranges as routing.  What is held is :data:`~vecdb.bulk.spool.BUFFER_BYTES`,
   however much is read.
2. *Shards*: each spool becomes a shard, in a process of its own: an embedded database with one collection, filled and
   optimized, so that its records are in sealed segments, their graphs built once from nothing; it is saved to the place
   as a shard of a snapshot is.  A process holds its shard's vectors twice and the graph, which is what ``--shards`` is
   to be chosen by.
3. *Commit*: the snapshot is written, which names the shards.  Until then nothing of it is seen.

Each step's pieces (a file's spools, a shard) are noted on the disk when they are whole, by the process that made them:
killed at any moment, the same call goes on with those that are missing.  Two at once in one scratch folder are refused.

**Engines** (:mod:`~vecdb.bulk.engines`) run the pieces: processes of this machine, or a Ray cluster, for which the
scratch folder and the input must be on a file system that its nodes share.  Both run the same two functions
(:mod:`~vecdb.bulk.pieces`).

**Attach** (:mod:`vecdb.services.operations.attach`) brings a snapshot, this or any other, into a running cluster by
its files.

**Measured** (two cores with other work, so in CPU time): 1,000,000 clustered float32 vectors of 96 dimensions in four
shards, HNSW with m 16 and construction width 200: 175 s of user and 9 s of system time, of which partitioning is 13 s
of wall time; 711 MB of objects.  Attached to three nodes on the same machine with three replicas of each shard: 17.7 s,
19.4 s of CPU.  recall@10 of 200 queries 0.9815 at the default width, 1.0 at 64; a count and a comparison of all
replicas at once after it agree.  What that leaves open for a billion: partitioning is one process a file, so such input
should come in many files; and a node fetches one shard at a time.
"""

from vecdb.bulk.building import Built, Job, build
from vecdb.bulk.engines import Engine, LocalEngine, RayEngine

__all__ = ["Built", "Engine", "Job", "LocalEngine", "RayEngine", "build"]
