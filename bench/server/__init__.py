"""The server measured from outside, beside the bare index and beside an empty reply: ``python -m bench.server``.

Every number of a table comes from one run: the node, the floor (:mod:`bench.server.floor`, a server that answers every
query with the same bytes), and the clients are processes of their own, the bare index and the embedded database run
between them, and the points are visited in rounds.  On a machine whose cores are shared with others the columns of CPU
time are the steady ones; a wall-clock rate also pays for the clients, which run on the same cores.
"""
