"""Orchestration over ports: a shard that is written, read and maintained; a database of such shards.

``shard.ShardService`` owns one shard: the write lock, group commit, recovery after a disk refused, and
queries on pinned views.  ``maintenance`` runs its jobs (graph growth, sealing, merging, rebuilding) on one
background thread, with progress.  ``local.LocalDatabase`` is a directory of shards behind the SDK's
``Backend`` protocol: the embedded database, and what a node will serve.

``replica.ShardReplica`` is the same service driven by a log: commands are applied at once to a store without a log of
its own, made durable at checkpoints, and brought back by the log after a crash; ``snapshots`` carry a whole state to
another replica, ``homes`` let it take the old one's place in one step.
"""
