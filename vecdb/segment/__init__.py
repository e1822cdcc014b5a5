"""Segments: the unit of search in a shard, growing (append-only) or sealed (immutable files).

Both hold rows by *ordinal*, 0..n-1, and answer through an immutable *view*: a pinned count and a bitset
of live ordinals, copied when a record dies, so that a reader sees exactly the records of one moment
while the writer goes on.

- ``growing``: rows in reserved memory that never moves; the graph follows in batches and what it does
  not hold yet is scanned exactly.
- ``sealed``: rows reordered for locality, graph, codes, ids and metadata index as checksummed files.
- ``build``: makes a sealed segment out of one or more others (sealing, merging and compaction are one job).
- ``search``: one segment, one query batch; ``merge`` joins the answers of several.
"""
