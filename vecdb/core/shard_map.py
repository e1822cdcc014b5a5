"""Which shards a collection has and where they are: for clients that ask the shards' nodes themselves."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ShardRoute:
    """A shard: the hashes ``lo <= hash < hi``, the nodes that hold it, and who leads ("": not known)."""

    group: int
    lo: int
    hi: int
    nodes: tuple[str, ...]
    leader: str = ""


@dataclass(frozen=True, slots=True)
class NodeRoute:
    """``address``: for clients, ``host:port``; "": not known."""

    name: str
    address: str
    zone: str = ""


@dataclass(frozen=True, slots=True)
class ShardMap:
    """``shards``: in the order of their ranges.  ``epoch`` rises with every change of who holds what."""

    collection: str
    epoch: int
    shard_key: str | None
    shards: tuple[ShardRoute, ...]
    nodes: tuple[NodeRoute, ...]
