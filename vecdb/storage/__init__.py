"""The outside of a disk: RocksDB as the ``Store`` port, and the lock on a database's directory.

Decisions.

**Two steps to durability.** ``write`` puts one batch into RocksDB's log and memtable and returns with the
batch visible and in the kernel's page cache: a killed process loses nothing, a power cut may.  ``sync``
makes everything written so far durable.  rocksdict holds the GIL during a write but not during
``flush_wal``, so the fsync is paid once by one thread for all who wait, while others run.  Where RocksDB would
sleep inside a write because compaction is behind, it is told to refuse instead, and we sleep without the GIL.

**A disk that hangs.** rocksdict lets go of the GIL to flush, sync, compact and close, and to read many keys.  It holds
it, whatever the disk does, to open a store, for a checkpoint, and to append a write to a log (measured with syncs
of half a second: others stood for 5.1 s and 1.5 s; and for 0.5 s where each write to a file took as long).  A node that
serves does the first two after a step that asks the disk without the GIL (a folder is made and synced, the memtable
written out), and stands there if the disk hangs already; appending ends in the page cache unless the kernel stops
writers.  What is left: where a disk begins to hang within these calls, the whole process stands as if it were stopped,
and others elect leaders.

**A failed write ends writing.** After a write or sync that failed nobody can know what of it is on the
disk, and after a failed fsync the kernel may have dropped the dirty pages and report success next time.
So the store refuses further writes with the same error until it is opened anew, which replays the log
and thereby settles the question.  Reads go on.

**Without a log** (``wal=False``): for shards whose writes Raft's log brings back.  ``sync`` then writes the memtable
out as a table file, and a crash leaves all batches up to one at or after the last ``sync``: memtables hold whole
batches, and become tables in the order they were filled.

**Damage is an error, never an absence.** Every block and log record carries a checksum; a scan asks for
the iterator's status where it ends (rocksdict's own ``items`` takes an unreadable block for the end of the
data); the log's chain of sequence numbers is checked before RocksDB replays it
(:mod:`vecdb.storage.wal`); what the MANIFEST is known to hold is kept beside it (:mod:`vecdb.storage.expect`).

**A torn end is not damage.** Power loss tears what was not synced, and nobody was promised that.  Which bytes of the
log were synced is noted (:mod:`vecdb.storage.synced`), but the note may be older than the log (that it never is would
cost a second fsync for every first), so beyond it the end of the newest log is judged by its looks
(:mod:`vecdb.storage.torn`): bytes behind which no record begins, and which neither one flipped bit nor a wrong length
explains, are moved to a file of their own, named by ``RocksStore.recovered_tail``.  The price: where a power cut takes
the note, and a medium garbles whole sectors at the end of the newest log *after* their sync, the records in them are
dropped with that notice instead of an error.  Closing flushes the memtable, so a store closed in order has no log to
lose.  The opposite price: of several unsynced writes the disk may have kept a later and lost an earlier; that stays
``DataCorrupted``, as it cannot be told from damage to what was promised.

**Logs of replication** keep their commands beside RocksDB, in files that are written once (:mod:`vecdb.storage.split`).

**A handle belongs to one process.** RocksDB does not live through ``fork`` (:mod:`vecdb.storage.forks`).
"""
