"""A node of a cluster for its clients: any node answers any call, from its own replicas or by way of others.

A call is of a collection, and a collection is of shards (:mod:`vecdb.cluster.routing`).  :mod:`.knowledge` says which
they are, as this node knows it, and finds out what it does not; :mod:`.fan` asks those that a read concerns, each
through :mod:`.shard_reads` or several of a node together (:mod:`.bundles`), and makes their answers one; :mod:`.writes`
has each shard's part of a write committed by its leader; :mod:`.scans` go through them one after the other;
:mod:`.collections` and :mod:`.care` do the rest.  :class:`ReplicatedNode` is all of it as a
:class:`~vecdb.ports.node.Node`.

**Between nodes** a shard is named by its label, as the collection of the call: ``docs`` for the only shard of one that
was made with one, else ``docs@17``.  Nothing is handed on twice: who is asked for a shard answers from its own replica
(:mod:`vecdb.services.replicas`) or says why not.  A group's number is never given twice, so it fences by itself: who
asks for a shard that is no more is refused (``StaleShardMap``), looks at the map anew and asks its successors.

**A collection with one shard** goes the way it always went: no task, no timer and no turn of the loop more than the
shard's own read takes.

**Promised**: what was promised of one shard holds of each: an acknowledged write is on a majority's disks of every
shard that it concerns; reads are as consistent per shard as they ask; a retry with its idempotency key happens once,
on every shard, be it split or merged meanwhile, for as long as keys are remembered.  **Not promised**: anything at one
moment of several shards.  A write may be seen on one before it is on another, a query that runs beside it may find half
of it, and a write that fails may have been done in part (the error says on which shards).
"""

from vecdb.services.coordinator.knowledge import Cluster, Counts
from vecdb.services.coordinator.node import ReplicatedNode

__all__ = ["Cluster", "Counts", "ReplicatedNode"]
