"""Replication measured: the stock library beside ours, the disk's own fsync beside both, and whole clusters.

Three processes on loopback, each with its own folder.  The stock library has no fsync to turn on; ours syncs before it
acknowledges.  Loads run inside the leader's process where the replicated log alone is measured, so that no client's
cost is in the figures, and through the SDK where the database is.
"""
