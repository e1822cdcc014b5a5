"""Metadata indexes: from a filter's tree to the set of rows that match it.

A *growing* index is columns that one writer appends to; a *sealed* one is sorted postings in one checksummed
buffer, made by *merging* indexes.  Both answer ``rows(node)`` exactly as :func:`vecdb.core.filters.evaluate` would, row
by row, with one kind of exception: where a path is not indexed (the collection names others, there was no room, a
string is over the limit) the answer is a superset with the filter to be asked, and a subset that need not be.

Numbers are kept in their own types and never converted; strings as UTF-8, whose order is that of code points; times
as int64 nanoseconds beside the strings they were read from; points as two columns.  ``bits`` turns sets of rows
into the bitsets that kernels take, ``selectivity`` chooses how to search under a filter.
"""

from vecdb.metadata.growing import GrowingIndex
from vecdb.metadata.merge import merge
from vecdb.metadata.rowset import RowSet
from vecdb.metadata.sealed import SealedIndex

__all__ = ["GrowingIndex", "RowSet", "SealedIndex", "merge"]
