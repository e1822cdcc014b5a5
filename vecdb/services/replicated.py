"""A node of a cluster for its clients: see :mod:`vecdb.services.coordinator`, where it lives."""

from vecdb.services.coordinator import Cluster, Counts, ReplicatedNode

__all__ = ["Cluster", "Counts", "ReplicatedNode"]
