"""Spools: the records of one shard out of one file, as upserts one after another, each behind its size and checksum."""

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import xxhash

from vecdb.core.errors import DataCorrupted
from vecdb.core.records import UpsertBatch
from vecdb.segment.files import from_os_error
from vecdb.shard import codec

BUFFER_BYTES: Final = 64 << 20
"""Of all spools of a file together, what is held before it is written."""
_HEAD: Final = struct.Struct("<IQ")


class SpoolWriter:
    """The spools of one file in ``folder``, one a shard; files are opened only to be written to.

    Errors are ``StorageFull`` and other ``StorageError``s.
    """

    def __init__(self, folder: Path, shards: int) -> None:
        self._folder = folder
        self._held: list[list[bytes]] = [[] for _ in range(shards)]
        self._bytes = 0
        self.records = [0] * shards
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise from_os_error(error, folder, "creating") from error

    def add(self, shard: int, batch: UpsertBatch) -> None:
        data = codec.encode(batch)
        self._held[shard].append(_HEAD.pack(len(data), xxhash.xxh3_64_intdigest(data)) + data)
        self._bytes += len(data)
        self.records[shard] += len(batch.ids)
        if self._bytes >= BUFFER_BYTES:
            self._flush(sync=False)

    def finish(self) -> None:
        """All of it is on the disk when this returns."""
        self._flush(sync=True)

    def _flush(self, *, sync: bool) -> None:
        for shard, held in enumerate(self._held):
            path = spool_of(self._folder, shard)
            try:
                with path.open("ab") as file:
                    for data in held:
                        file.write(data)
                    file.flush()
                    if sync:
                        os.fsync(file.fileno())
            except OSError as error:
                raise from_os_error(error, path, "writing") from error
            held.clear()
        self._bytes = 0


def spool_of(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05d}.spool"


def read_spool(path: Path) -> Iterator[UpsertBatch]:
    """The batches of a spool; ``DataCorrupted`` where one is not what was written."""
    try:
        with path.open("rb") as file:
            while head := file.read(_HEAD.size):
                size, checksum = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, 0)
                data = file.read(size)
                if len(data) != size or not size or xxhash.xxh3_64_intdigest(data) != checksum:
                    raise DataCorrupted(f"{path} is damaged", path=str(path), region="spool")
                command, _ = codec.decode(data)
                if not isinstance(command, UpsertBatch):
                    raise DataCorrupted(f"{path} holds something else", path=str(path), region="spool")
                yield command
    except OSError as error:
        raise from_os_error(error, path, "reading") from error


def gathered(batches: Iterator[UpsertBatch], most_records: int, most_bytes: int) -> Iterator[list[UpsertBatch]]:
    """Runs of batches that are of one write together."""
    held: list[UpsertBatch] = []
    records = size = 0
    for one in batches:
        mine = one.vectors.nbytes + sum(map(len, one.metadata))
        if held and (records + len(one.ids) > most_records or size + mine > most_bytes):
            yield held
            held, records, size = [], 0, 0
        held.append(one)
        records, size = records + len(one.ids), size + mine
    if held:
        yield held


def joined(batches: Sequence[UpsertBatch]) -> UpsertBatch:
    """One batch of several; of equal ids the last is meant, as the shard has it."""
    if len(batches) == 1:
        return batches[0]
    return UpsertBatch(tuple(one for batch in batches for one in batch.ids),
                       np.concatenate([one.vectors for one in batches]),
                       tuple(one for batch in batches for one in batch.metadata))
