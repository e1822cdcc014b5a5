"""Words of the domain: frozen values, limits and errors; no I/O, no clock, no thread.

Everything above speaks in these types.  A vector enters the system once, at the edge, where
:class:`~vecdb.core.schema.CollectionSchema` says what shape it must have; from there on only
checked values travel.
"""
