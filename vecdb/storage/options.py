"""How RocksDB is tuned here, and the memory all stores of a process share.

The work is: batches of some hundred rows of 0.1-4 KiB (metadata, ids, the vectors of a growing segment)
appended at the head; point reads of many keys at once; range deletion of whole segments' vectors when
they are sealed; one scan of everything at opening.  So:

- full bloom filters, ten bits a key, index and filter blocks inside the bounded cache;
- one block cache and one write-buffer budget for the whole process, however many collections are open;
- LZ4, which gives up quickly on vectors and halves metadata;
- files of sixty-four MiB and twelve of them before they are merged: what is written first, the vectors of a growing
  segment, is deleted as a range soon, so merging it early rewrites what goes anyway.  Measured, batches of 1 MB through
  three nodes: with RocksDB's four of 32 MiB a store wrote 1.9 to 2.3 times what it was given, with this 1.4 times, and
  three nodes on two cores accepted 41 MB/s where they had 37;
- few file handles, few and small information logs, no periodic statistics.

**Recovery** is ``kTolerateCorruptedTailRecords``.  ``kAbsoluteConsistency`` refuses to open after any
power cut that tore an unsynced, unacknowledged record.  ``kPointInTime`` (RocksDB's default) stops at
the first damaged record and silently drops all that follow, acknowledged or not.  The tolerant mode
accepts an incomplete record at the end of a log and reports every checksum mismatch as corruption.  What
it still lets pass is caught by :mod:`vecdb.storage.wal` before RocksDB sees the log; where it refuses only what an
interrupted write left, :mod:`vecdb.storage.torn` cuts that off first.
"""

from dataclasses import dataclass, field
from functools import cache

from rocksdict import (
    BlockBasedOptions,
    Cache,
    ChecksumType,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    WriteBufferManager,
)

KIB = 1 << 10
MIB = 1 << 20
BLOCK_CACHE_BYTES = 64 * MIB
WRITE_BUFFER_BYTES = 128 * MIB
MEMTABLE_BYTES = 64 * MIB
YOUNG_FILES = 12
MAX_WAL_BYTES = 128 * MIB
MAX_OPEN_FILES = 256
MAX_BACKGROUND_JOBS = 2
KEPT_INFO_LOGS = 2


@dataclass(frozen=True, slots=True)
class StoreResources:
    """Memory shared by every store opened with it; sizes in bytes.

    ``write_buffer_bytes`` bounds the memtables of all stores together: the store that writes when the sum
    is above it flushes early.
    """

    block_cache_bytes: int = BLOCK_CACHE_BYTES
    write_buffer_bytes: int = WRITE_BUFFER_BYTES
    block_cache: Cache = field(init=False, repr=False, compare=False)
    write_buffers: WriteBufferManager = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_cache", Cache(self.block_cache_bytes))
        object.__setattr__(self, "write_buffers", WriteBufferManager(self.write_buffer_bytes, False))


@cache
def shared_resources() -> StoreResources:
    """Return the process's default resources, made when first asked for."""
    return StoreResources()


def store_options(resources: StoreResources, *, create: bool) -> Options:
    """Return options for one store; ``create`` lets an empty directory become a store."""
    options = Options(raw_mode=True)
    options.create_if_missing(create)
    _bound_memory(options, resources)
    _bound_files(options)
    options.set_paranoid_checks(True)
    options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
    options.set_recycle_log_file_num(0)  # a recycled log may hold old records after its tail: no telling them from lost
    options.set_compression_type(DBCompressionType.lz4())
    options.set_max_background_jobs(MAX_BACKGROUND_JOBS)
    options.set_level_compaction_dynamic_level_bytes(True)
    return options


def _bound_memory(options: Options, resources: StoreResources) -> None:
    table = BlockBasedOptions()
    table.set_block_cache(resources.block_cache)
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    table.set_bloom_filter(10, False)
    table.set_block_size(8 * KIB)  # ten random rows: 29 us of CPU; 37 with 16 KiB; 28 with 4, a larger file
    table.set_format_version(5)
    table.set_checksum_type(ChecksumType.xxh3())
    options.set_block_based_table_factory(table)
    options.set_write_buffer_manager(resources.write_buffers)
    options.set_write_buffer_size(MEMTABLE_BYTES)
    options.set_max_write_buffer_number(3)
    options.set_level_zero_file_num_compaction_trigger(YOUNG_FILES)
    options.set_level_zero_slowdown_writes_trigger(3 * YOUNG_FILES)
    options.set_level_zero_stop_writes_trigger(5 * YOUNG_FILES)
    options.set_max_total_wal_size(MAX_WAL_BYTES)


def _bound_files(options: Options) -> None:
    options.set_max_open_files(MAX_OPEN_FILES)
    options.set_keep_log_file_num(KEPT_INFO_LOGS)
    options.set_max_log_file_size(MIB)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    options.set_max_manifest_file_size(4 * MIB)
    options.set_manifest_preallocation_size(64 * KIB)
    options.set_target_file_size_base(64 * MIB)
    options.set_bytes_per_sync(MIB)
