"""Whole clusters in one thread on virtual time: the real replication, a world that fails as told by a seed.

:mod:`~vecdb.testing.world` has time, chance and the trace; :mod:`~vecdb.testing.network` and :mod:`~vecdb.testing.disk`
the faults of wires and disks; :mod:`~vecdb.testing.register` a small state machine; :mod:`~vecdb.testing.cluster` nodes
that crash, pause and come back; :mod:`~vecdb.testing.clients` those who use it and write down what they were told;
:mod:`~vecdb.testing.nemesis` what goes wrong.  The judges stand apart and share nothing with what they judge but its
records: :mod:`~vecdb.testing.checks` and :mod:`~vecdb.testing.linear`.  :mod:`~vecdb.testing.sim` runs seeds.

The same seed and the same commit give the same run, event by event: nothing here iterates a set, reads a clock or uses
another random source than the world's.
"""
