"""The control machine: what the control group agrees on, and the commands that change it.

::

    opcode u8 | version u8 | key length u8 | key | body (JSON)

==========  ==========================================================================================
1 create    ``schema``, ``shards`` (``lo``, last hash, first voters as ``node/number`` of each),
            ``replication_factor``, ``shard_key``; version 1: ``schema``, ``replicas``, for one shard
2 drop      ``name``
==========  ==========================================================================================

``key`` is the idempotency key: a command that took effect under one is answered with what it did then, as long as it
is among the last ``MAX_KEYS_KEPT`` that had one, and refused if the key was another command's.  Which replicas were
chosen is no part of that: a retry may come by another leader, who chooses otherwise.

:func:`apply` is total: what cannot be read or makes no sense has an error as its outcome and changes nothing but the
position.  Unknown opcodes, versions and fields are refused, so that an old node does not half understand a new one.

**A collection has shards** by ranges of a hash.  Its entry names their groups; a shard's entry has its range, who was
there first (``replicas``) and who should hold it now (``desired``).  A shard is held under a *label* on the nodes that
have it, which is the collection's name for the only shard of one that was made with one (as all were, once), and
``name@group`` for others: '@' is in no collection's name.  Users are told of collections, never of labels
(:func:`collection_of`).
"""

from vecdb.cluster.control.commands import (
    MAX_VOTERS,
    VERSION,
    Command,
    Create,
    Drop,
    check_replicas,
    create,
    create_shards,
    decode,
    drop,
    version_of,
)
from vecdb.cluster.control.entries import (
    ApiKeyEntry,
    CollectionEntry,
    JobEntry,
    NodeEntry,
    ShardEntry,
    TokenEntry,
    collection_of,
    node_of,
)
from vecdb.cluster.control.machine import Applied, apply
from vecdb.cluster.control.rows import RANGES, STATE_ROW, from_rows, read_rows, rows_of
from vecdb.cluster.control.state import MAX_KEYS_KEPT, ControlState, Done, Refusal

__all__ = [
    "MAX_KEYS_KEPT", "MAX_VOTERS", "RANGES", "STATE_ROW", "VERSION", "ApiKeyEntry", "Applied", "CollectionEntry",
    "Command", "ControlState", "Create", "Done", "Drop", "JobEntry", "NodeEntry", "Refusal", "ShardEntry",
    "TokenEntry", "apply", "check_replicas", "collection_of", "create", "create_shards", "decode", "drop", "from_rows",
    "node_of", "read_rows", "rows_of", "version_of",
]
