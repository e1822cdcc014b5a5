"""Other vector databases in the harness of :mod:`bench.server`: ``python -m bench.peers``.

Each peer lives in an environment of its own (``build/peers/NAME``), made from its package by pip; its server is a
process on loopback, its clients are processes of that environment's interpreter that run :mod:`bench.peers.client`.  So
this package imports nothing but NumPy and the standard library where peers run it.
"""
