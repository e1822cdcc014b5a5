"""An incremental hash of a shard's live records.

Each record version hashes to 128 bits over (id, stored vector, metadata); the shard's digest is their
sum modulo 2**128, so adding and removing a record is one addition, order does not matter, and replicas
that cut their segments differently still compare equal (Bellare and Micciancio's AdHash; here against
accidents, not adversaries, hence a fast non-cryptographic hash).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from vecdb.shard import rows

MODULUS = 1 << 128
FEW = 16
"""Digests that are added one by one sooner than as columns."""


def digest_of(id_key: bytes, vector: memoryview | bytes, metadata: bytes) -> bytes:
    """The 16-byte digest of one record version; ``id_key`` is self-delimiting by its length prefix."""
    return digest_of_row(rows.sized(id_key), vector, metadata)


def digest_of_row(sized_key: bytes, vector: memoryview | bytes, metadata: bytes) -> bytes:
    """The same of an id key that has its length before it."""
    # joined and hashed at once: a hasher that is fed three times takes three times as long
    return xxhash.xxh3_128_digest(b"".join((sized_key, vector, metadata)))


def total(digests: Sequence[bytes]) -> int:
    """The sum of digests modulo 2**128."""
    if len(digests) < FEW:
        return sum(int.from_bytes(one, "big") for one in digests) % MODULUS
    return total_of(np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2))


def total_of(halves: npt.NDArray[np.uint64]) -> int:
    """The same of digests (n, 2) as upper and lower 64 bits."""
    # 32 bits at a time, so that sums over 2**32 records stay exact in 64
    parts = [int((halves[:, column] >> np.uint64(shift) & np.uint64(0xFFFFFFFF)).sum(dtype=np.uint64))
             for column in (0, 1) for shift in (32, 0)]
    return ((parts[0] << 96) + (parts[1] << 64) + (parts[2] << 32) + parts[3]) % MODULUS
