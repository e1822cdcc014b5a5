"""Which nodes hold a shard: weighted rendezvous hashing, spread over zones, kept even by what each holds already.

Every node has a score for every shard, ``-capacity / ln(u)`` with ``u`` uniform in (0, 1) from a hash of both (the
logarithmic method: C. Schindelhauer, G. Schomaker, *Weighted Distributed Hash Tables*, SPAA 2005), and the best scores
hold it.  So a node has its share by capacity, nobody keeps a table, and when a node comes or goes only the shards move
that it gains or loses: at most one replica of each.

**Zones** are filled one after the other: no zone has a second replica while another has none, a third while another has
one, and so on.  Within that the scores decide.  Where there are as many zones as replicas each zone holds every
shard, whatever its capacity: that is what spreading means.

**Even.**  By chance alone the fullest of 100 nodes with 300 replicas each has 15 % above the mean.  A choice that is
written down need not be found again from the hash, so nodes that hold more than ``SLACK`` above their share are
passed over while others will do (the bound of V. Mirrokni, M. Thorup, M. Zadimoghaddam, *Consistent Hashing with
Bounded Loads*, SODA 2018).

**Disks that are nearly full** (:func:`vecdb.core.cluster.disk_state`) are named last of those that are heard: a replica
more would fill them, and halt all that is there.

**Nodes that are not heard** at the moment of placing are named as replicas where those that are heard do not suffice:
what was asked for is what a shard has from the first moment, so that its majority is one of all of them, and who was
silent for some seconds only makes its replica when it comes back.  Who does not is replaced as any lost node is.  But a
majority of a new shard must be heard (:func:`check_heard`): it would have no leader otherwise, and with fewer replicas
than were asked for a write would be acknowledged that one disk could lose.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isfinite, log
from typing import Final

import xxhash

from vecdb.core.cluster import HASH_SPACE, MAX_COLLECTION_SHARDS
from vecdb.core.errors import InvalidArgument, Unavailable

SLACK: Final = 0.05
"""How far above its share of replicas a node may come while others are below theirs."""

ONE_SHARD_RECORDS: Final = 5_000_000
SHARD_RECORDS: Final = 10_000_000
LEAST_RECORDS: Final = 2_500_000


def shards_for(records: int, nodes: int) -> int:
    """How many shards a collection of so many records should have on so many nodes that hold replicas.

    A shard is searched by the nodes that hold it alone, and every query asks every shard: with more shards more cores
    work on one query, and each query costs more in all, for a graph of half the size takes nearly as many comparisons
    as the whole (they grow with the logarithm).  So few records stay together (below 5 million: one shard); many are
    at most 10 million to a shard, which is what can be copied to another node, or built anew, within minutes; and
    between the two every node gets one as long as each has 2.5 million, for nodes without a shard serve no query.
    """
    if records < ONE_SHARD_RECORDS:
        return 1
    return min(MAX_COLLECTION_SHARDS, max(-(-records // SHARD_RECORDS), min(nodes, records // LEAST_RECORDS)))


def ranges(shards: int) -> list[tuple[int, int]]:
    """All hashes in so many equal parts, ``lo <= hash < hi``."""
    bounds = [HASH_SPACE * at // shards for at in range(shards + 1)]
    return list(pairwise(bounds))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that may hold replicas.

    ``capacity``: in any unit, the same for all; above 0.  ``zone``: what fails as one; empty where nothing is known,
    and then all nodes are of one zone.  ``load``: replicas it holds already.  ``well``: others are preferred to a node
    that is not, and to one that is ``low``: its disk is nearly full.
    """

    node: str
    capacity: float = 1.0
    zone: str = ""
    load: int = 0
    well: bool = True
    low: bool = False

    def __post_init__(self) -> None:
        if not (isfinite(self.capacity) and self.capacity > 0):
            raise InvalidArgument("capacity", "must be a number above 0", got=self.capacity, limit="> 0")


def score(shard: int, candidate: Candidate) -> float:
    """The higher, the more the shard belongs there; above 0, the same in every process."""
    hashed = xxhash.xxh3_64_intdigest(candidate.node.encode(), xxhash.xxh3_64_intdigest(shard.to_bytes(8, "little")))
    return -candidate.capacity / log((hashed + 0.5) / 2.0**64)


def place(shard: int, candidates: Sequence[Candidate], replicas: int) -> tuple[str, ...]:
    """The nodes of a shard's ``replicas`` replicas, by descending score: so many, or all there are.

    Raises ``InvalidArgument`` for a node named twice, or if there is none.
    """
    names = [candidate.node for candidate in candidates]
    if not names or len(set(names)) != len(names):
        raise InvalidArgument("nodes", "must be distinct, and at least one", got=names[:16])
    full = _full(candidates, replicas)
    ranked = sorted(candidates, key=lambda one: (not one.well, one.low, *_order(shard, one)))
    used: Counter[str] = Counter()
    chosen: list[Candidate] = []
    while ranked and len(chosen) < replicas:
        # Of equals the first is taken, which has the best score.
        best = min(ranked, key=lambda one: (not one.well, one.low, used[one.zone], one.node in full))
        ranked.remove(best)
        used[best.zone] += 1
        chosen.append(best)
    return tuple(one.node for one in sorted(chosen, key=lambda one: _order(shard, one)))


def spread(first: int, candidates: Sequence[Candidate], shards: int, replicas: int
           ) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """New shards with equal parts of all hashes, numbered from ``first`` on: ``lo``, ``hi`` and the nodes of each.

    Each is placed where those before it are, so that nodes are filled evenly within one collection too.
    """
    by_name = {one.node: one for one in candidates}
    for group, (lo, hi) in enumerate(ranges(shards), first):
        nodes = place(group, list(by_name.values()), replicas)
        for node in nodes:
            by_name[node] = replace(by_name[node], load=by_name[node].load + 1)
        yield lo, hi, nodes


def check_heard(shards: Iterable[Collection[str]], silent: Collection[str]) -> None:
    """Raise ``Unavailable`` unless of the nodes of each new shard a majority is not ``silent``."""
    for nodes in shards:
        unheard = sorted(node for node in nodes if node in silent)
        if unheard and 2 * (len(nodes) - len(unheard)) <= len(nodes):
            raise Unavailable(f"of {len(nodes)} nodes for the replicas of a shard a majority must be heard, and "
                              f"{', '.join(unheard[:8])} {'is' if len(unheard) == 1 else 'are'} not",
                              nodes=unheard[:16], retry_after_s=1.0)


def _order(shard: int, candidate: Candidate) -> tuple[float, str]:
    return -score(shard, candidate), candidate.node


def _full(candidates: Sequence[Candidate], replicas: int) -> set[str]:
    """Who would come above the slack with one more."""
    capacity = sum(one.capacity for one in candidates)
    total = sum(one.load for one in candidates) + replicas
    return {one.node for one in candidates
            if one.load and one.load + 1 > (1 + SLACK) * total * one.capacity / capacity}
