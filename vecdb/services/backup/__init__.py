"""Snapshots of collections in a folder or a bucket: made while they are written, verified, restored anywhere.

::

    vecdb.backups                what this place is, and the version of its format
    objects/ab/ab12...           content, by its SHA-256
    snapshots/NAME.json          a snapshot; written last, so one that is there is whole
    leases/save-ID               somebody is at work; see below

**By content.**  A shard's files never change: sealed segments by design, tables of RocksDB by its.  Each is an object
under its SHA-256, uploaded if it is not there, so a second snapshot takes what is new, and what was interrupted goes on
where it was.  Files of a few KB stand in the shard's manifest, which is such an object too: position in the log,
records, digest, schema, and every file's size and checksum.  A snapshot is a list of these, with how each collection
was divided, the cluster's settings and its API keys (their salted hashes).  SHA-256, because tenants write what is in
the files: none must be able to make one that is taken for another's.

**Consistent** at one log index of each shard: what it had applied there, all of it and nothing else.  Shards are not
stopped for each other, so of a write to several of them, or of two writes by one client, one may be in and the other
not, though the second came later.

**Who is at work leaves a lease**, renewed while it lives; its age is told by the store's clock alone.  A snapshot that
is being made counts on objects that it found; deleting one sweeps those that nobody needs.  So whoever saves writes a
lease and then looks for sweepers, whoever sweeps writes a lease and then looks for everybody: one sees the other, as
stores give what was written before (S3 does since 2020).  Who sees a sweeper waits, a sweeper who sees somebody leaves
the objects for the next one.  The last look at all objects of a snapshot comes right before it is written, under a
fresh lease; what is deleted by hand is found by ``verify``.

**Restored** by loading records, not files, where there is more than one shard on either side: they are read from the
files in the order of their rids and imported in pieces whose borders follow from the files alone.  A piece has a number
and is applied once (:mod:`vecdb.shard.imports`), so one that was sent again, by the same loader or its successor, or by
one that was thought dead and wakes up when others have written since, does nothing.  That is the whole argument: it
needs no replica to begin with a state that others may not have, fits any number of shards, and survives any kill.  It
costs the indexes, which are built anew.  Attached (:mod:`vecdb.services.operations.attach`), a collection keeps its
shards and their indexes: its files become the state of every replica, at one place of its log.  Into one directory the
one shard of a collection is restored as it was.
"""
