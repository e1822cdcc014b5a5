"""A shard: the replicated state machine over segments.

``machine.apply(log_index, command)`` says what a command changes and touches nothing that a reader can
see; the service above writes the mutations, and ``machine.commit`` then publishes a new immutable view.
A write that the disk refused is simply never committed.

**Rows** (``rows``): every record version has a *rid*, the shard's own ever-growing number.  The rid is
what the rows, the segments' files and the tombstones speak of, so sealing and merging segments, which
move records between segments and reorder them, rewrite no id row and no metadata row.

**The log carries records, never graph edges.**  Segments, graphs and codes are projections: two replicas
may cut their segments at different places and still agree, record for record, by ``digest``; ``marks`` are places in
the log at which they are compared.
"""
