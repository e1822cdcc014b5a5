"""The SDK: what users hold.  ``Database`` and ``Collection`` are a facade over a :class:`Backend`.

Decided here: the facade checks every argument and makes stored vectors (:mod:`vecdb.core.vectors`) before the
backend sees anything, so that a refusal changes nothing and every backend, embedded or remote, answers alike.

What a method does is written once, as a generator of steps (:mod:`~vecdb.client.steps`): ``Database`` and
``Collection`` drive it by calling a Backend, ``AsyncDatabase`` and ``AsyncCollection`` by awaiting a Node
(:mod:`vecdb.ports.node`).  A backend may offer more than the protocol, and the steps take what is there: ``upsert_all``
(batches several at a time), ``remembers_schemas`` with ``refresh_schema`` (a call is one round trip; refused by an old
schema it is checked again by the true one), ``keeps_time`` (deadlines are its own affair) and ``batch_bytes``.

Importing it compiles nothing; rich, pyarrow and pandas are touched only by calls that need them, and gRPC only by
``connect`` to a server.
"""
