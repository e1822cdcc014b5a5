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
"""

from vecdb.bulk.building import Built, Job, build
from vecdb.bulk.engines import Engine, LocalEngine, RayEngine

__all__ = ["Built", "Engine", "Job", "LocalEngine", "RayEngine", "build"]
