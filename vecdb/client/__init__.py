"""The SDK: what users hold.  ``Database`` and ``Collection`` are a facade over a :class:`Backend`.

Decided here: the facade checks every argument and makes stored vectors (:mod:`vecdb.core.vectors`) before the
backend sees anything, so that a refusal changes nothing and every backend, embedded or remote, answers alike.

What a method does is written once, as a generator of steps (:mod:`~vecdb.client.steps`): ``Database`` and
``Collection`` drive it by calling a Backend, ``AsyncDatabase`` and ``AsyncCollection`` by awaiting a Node
(:mod:`vecdb.ports.node`).  A backend may offer more than the protocol, and the steps take what is there: ``upsert_all``
(batches several at a time), ``remembers_schemas`` with ``refresh_schema`` (a call is one round trip; refused by an old
schema it is checked again by the true one), ``keeps_time`` (deadlines are its own affair) and ``batch_bytes``.

What was written is remembered by collection, as places in the logs of shards, and session reads must have seen it
(:mod:`~vecdb.client.positions`).  So a handle is a session: read your own writes, and, by a token, another's.  It does
not promise that a later read sees no less than an earlier one of what *others* wrote, for reads come to another replica
each time; ``linearizable`` does.

Importing it compiles nothing; rich, pyarrow and pandas are touched only by calls that need them, and gRPC only by
``connect`` to a server.
"""
