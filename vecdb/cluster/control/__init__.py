"""The control machine: what the control group agrees on, and the commands that change it.

::

    opcode u8 | version u8 | key length u8 | key | body (JSON)

================  ====================================================================================
1 create          ``schema``, ``shards`` (``lo``, last hash, first voters as ``node/number`` of each),
                  ``replication_factor``, ``shard_key``; version 1: ``schema``, ``replicas``, for one shard
2 drop            ``name`` (version 1)
3 node_put        ``entry``: a node as it announces itself
4 node_state      ``name``, ``state``: active, draining or drained
5 node_remove     ``name``: it has left; only one that nothing should be on
6 token_put       ``entry``: a token to join with; those that have expired go
7 token_revoke    ``id``
8 api_key_put     ``entry``: a new API key, or other secrets or grants of one
9 api_key_revoke  ``id``
10 job_put        ``kind``, ``target``, ``args``: a job that waits; its id is given by the machine
11 job_update     ``id``, ``state``, ``phase``, ``done``, ``total``, ``unit``, ``error``, ``data``
12 job_cancel     ``id``
13 place          ``group``, ``desired``: the nodes that a shard should be on
14 replication    ``name``, ``factor``
15 shards_add     ``job``, ``name``, ``shards``: new groups, to be filled with the hashes of some there are
16 shards_switch  ``job``, ``name``, ``retire``, ``activate``: calls go to these instead of those
17 shards_forget  ``groups``: filled in vain, or replaced
18 setting_put    ``name``, ``value``
19 load           ``job``, ``schema``, ``shards``, ``replication_factor``, ``shard_key``: a collection to be
                  filled before anybody sees it
20 ready          ``job``, ``name``: it is filled
21 abandon        ``job``, ``name``: it was filled in vain
================  ====================================================================================

Clock readings (``at_s``) are in the command.  Commands are of version 2 but for ``drop``, and ``create`` of one shard
with as many replicas as it should have, which the nodes of before read too.  A node announces the latest version that
it reads; who proposes refuses what some node of the cluster does not (:attr:`ControlState.commands`), for that one
would apply it as nothing and differ from then on.

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

**A shard is replaced** in three commands of one job (a split, a merge): ``shards_add`` makes groups that are *loading*,
``shards_switch`` makes them *active* and those whose hashes they have *retired*, in one step with a new epoch, and
``shards_forget`` ends what was retired, or what was filled in vain.  A group that is no longer in ``shards`` is
dropped by those who hold it.  There is one such job at a time for any hash.

**Jobs** are the operators' and the cluster's work, run by who leads this group.  What has ended stays so; what is being
cancelled goes on being so, whatever a step that had begun before says, until it ends.
"""

from vecdb.cluster.control.checks import MAX_VOTERS, check_replicas
from vecdb.cluster.control.commands import (
    VERSION,
    Command,
    Create,
    Drop,
    NewShards,
    api_key_put,
    api_key_revoke,
    collection_abandon,
    collection_load,
    collection_ready,
    create,
    create_shards,
    decode,
    drop,
    job_cancel,
    job_put,
    job_update,
    node_put,
    node_remove,
    node_state,
    place,
    replication,
    setting_put,
    shards_add,
    shards_forget,
    shards_switch,
    token_put,
    token_revoke,
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
from vecdb.cluster.control.state import MAX_KEYS_KEPT, ControlState, Done, Outcome, Refusal

__all__ = [
    "MAX_KEYS_KEPT", "MAX_VOTERS", "RANGES", "STATE_ROW", "VERSION", "ApiKeyEntry", "Applied", "CollectionEntry",
    "Command", "ControlState", "Create", "Done", "Drop", "JobEntry", "NewShards", "NodeEntry", "Outcome", "Refusal",
    "ShardEntry", "TokenEntry", "api_key_put", "api_key_revoke", "apply", "check_replicas", "collection_abandon",
    "collection_load", "collection_of", "collection_ready", "create",
    "create_shards", "decode", "drop", "from_rows", "job_cancel", "job_put", "job_update", "node_of", "node_put",
    "node_remove", "node_state", "place", "read_rows", "replication", "rows_of", "setting_put", "shards_add",
    "shards_forget", "shards_switch", "token_put", "token_revoke", "version_of",
]
