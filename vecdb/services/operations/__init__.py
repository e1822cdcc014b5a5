"""Operations on a cluster that take a while: moves, splits, drains, repairs, snapshots.  See :mod:`.base`."""
