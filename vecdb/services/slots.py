"""A collection's place in a database, opened or not."""

import threading
from dataclasses import dataclass

from vecdb.services.catalog import Entry
from vecdb.services.maintenance import Maintainer
from vecdb.services.replica import ShardReplica
from vecdb.services.shard import ShardService


@dataclass(slots=True)
class Opened:
    shard: ShardService
    maintainer: Maintainer
    replica: ShardReplica | None = None


class Slot:
    """``lock`` is held while it opens or closes, ``calls`` counts who is using it."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.lock = threading.Lock()
        self.opened: Opened | None = None
        self.calls = 0
        self.used = 0
        self.gone = False
        self.restoring: ShardReplica | None = None
        """The replica that is opening another state, and whose old one had to make room."""
        self.allow_damage = False
        """Of a replica: open it although records are lost."""
