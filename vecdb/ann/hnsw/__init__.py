"""HNSW: hierarchical navigable small-world graphs, grown in batches and searched while they grow.

Decisions, and what each rests on:

- The graph knows ordinals only.  Rows or codes to compare are passed in, so one graph serves exact search, search on
  any codes, and rerank from rows that stay on disk.
- Levels are a hash of seed and ordinal, so all capacity is laid out when a graph is made, and what a batch does depends
  on nothing but the rows before it: the same calls make the same graph on any number of threads.
- Deleted vertices stay walkable until :func:`consolidate`; results leave them out by the ``allowed`` bitset.
- Arrays are reached by address from compiled code (:attr:`Graph.context`), so read-only mappings and writable memory
  share one compiled signature, and a call costs few array conversions.  Whoever searches holds the graph meanwhile.
"""

from vecdb.ann.hnsw.build import Linker, Run, grow, serial
from vecdb.ann.hnsw.graph import Graph, Scratch
from vecdb.ann.hnsw.maintain import consolidate, permute, renumber, reorder, repair
from vecdb.ann.hnsw.search import Mode, Searcher, search, search_within

__all__ = ["Graph", "Linker", "Mode", "Run", "Scratch", "Searcher", "consolidate", "grow", "permute", "renumber",
           "reorder", "repair", "search", "search_within", "serial"]
