"""The SDK: what users hold.  ``Database`` and ``Collection`` are a facade over a :class:`Backend`.

Decided here: the facade checks every argument and makes stored vectors (:mod:`vecdb.core.vectors`) before the
backend sees anything, so that a refusal changes nothing and every backend, embedded or remote, answers alike.
Importing it compiles nothing; rich, pyarrow and pandas are touched only by calls that need them.
"""
