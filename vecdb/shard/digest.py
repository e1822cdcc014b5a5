"""An incremental hash of a shard's live records.

Each record version hashes to 128 bits over (id, stored vector, metadata); the shard's digest is their
sum modulo 2**128, so adding and removing a record is one addition, order does not matter, and replicas
that cut their segments differently still compare equal (Bellare and Micciancio's AdHash; here against
accidents, not adversaries, hence a fast non-cryptographic hash).
"""

import xxhash

MODULUS = 1 << 128


def digest_of(id_key: bytes, vector: memoryview | bytes, metadata: bytes) -> bytes:
    """The 16-byte digest of one record version; ``id_key`` is self-delimiting by its length prefix."""
    hasher = xxhash.xxh3_128(len(id_key).to_bytes(1, "big") + id_key)
    hasher.update(vector)
    hasher.update(metadata)
    return hasher.digest()


def add(total: int, digest: bytes) -> int:
    return (total + int.from_bytes(digest, "big")) % MODULUS


def remove(total: int, digest: bytes) -> int:
    return (total - int.from_bytes(digest, "big")) % MODULUS
