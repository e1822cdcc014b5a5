"""What the faces, the batcher and the node tell of what happens; who listens (metrics, logs, samplers) is their affair.

All methods may be called from any thread, return within microseconds and never raise.

**Names.**  ``method`` is ``Service/Method`` without the package (``Queries/Query``), for gRPC and HTTP alike; never the
path of a request.  ``code`` is the canonical status name (``OK``, ``NOT_FOUND``).  ``collection`` is the name as the
caller gave it, or "": listeners bound how many they tell apart, and believe in a collection only once a call to it has
succeeded.  A message of a stream counts as a call of the stream's method.  Moments are on ``time.monotonic``.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Protocol

from vecdb.core.calls import Call
from vecdb.core.query import Cost, QueryRequest, QueryResult


class Refusal(StrEnum):
    """Why something was not begun; the reasons of ``refused``."""

    AUTH = "auth"
    PERMISSION = "permission"
    RATE = "rate"
    QUEUE = "queue"
    CALLS = "concurrent_calls"
    INFLIGHT_BYTES = "inflight_bytes"
    MESSAGE_BYTES = "message_bytes"
    MEMORY = "memory"
    DEADLINE = "deadline"
    DRAINING = "draining"


class Watched(StrEnum):
    """Figures that are read when somebody looks instead of being told: see ``watch``."""

    QUEUED_ROWS = "queued_rows"
    QUEUED_CALLS = "queued_calls"
    INFLIGHT_BYTES = "inflight_bytes"
    STREAMS = "streams"
    CONNECTIONS = "connections"
    API_KEYS = "api_keys"
    CERTIFICATE_EXPIRY = "certificate_expiry"
    CACHE_HITS = "cache_hits"
    CACHE_MISSES = "cache_misses"
    CACHE_ENTRIES = "cache_entries"
    DRAINING = "draining"


class LoneQuery(Protocol):
    """What ``lone_query`` is told; ``seconds``: of the call, until there was a reply."""

    @property
    def method(self) -> str: ...

    @property
    def collection(self) -> str: ...

    @property
    def seconds(self) -> float: ...

    @property
    def compute_s(self) -> float: ...

    @property
    def hops(self) -> int: ...

    @property
    def comparisons(self) -> int: ...

    @property
    def bytes_in(self) -> int: ...

    @property
    def bytes_out(self) -> int: ...

    def request(self) -> QueryRequest:
        """The query, made for who asks."""
        ...


class Observer(Protocol):
    """See the module; the NullObserver listens to nothing."""

    def call_began(self, method: str) -> float:
        """Count the call as in flight; returns the moment, for ``call_ended``.  Each begun call must be ended once."""
        ...

    def call_ended(self, method: str, began: float, collection: str, code: str, bytes_in: int,
                   bytes_out: int) -> float:
        """The call is over: ``began`` as returned, message bytes as received and sent.  Returns its seconds."""
        ...

    def batch_ran(self, collection: str, rows: int, waits_s: Sequence[float], compute_s: float, inline: bool) -> None:
        """Query rows of ``len(waits_s)`` calls ran together for ``compute_s``, after each had waited its ``waits_s``.

        ``inline``: on the event loop, without a thread.
        """
        ...

    def queried(self, collection: str, request: QueryRequest, result: QueryResult, cost: Cost, call: Call) -> None:
        """A query was answered; the request's arrays must not change afterwards.  Told where the engine is."""
        ...

    def lone_query(self, told: "LoneQuery") -> None:
        """All of the above at once, of a call whose one query ran alone, inline, whole, and too quickly to be told of.

        ``told`` is the caller's, and says something else afterwards.
        """
        ...

    def refused(self, reason: Refusal) -> None:
        """Something was turned away before any work was done for it."""
        ...

    def watch(self, what: Watched, read: Callable[[], float], label: str = "") -> None:
        """Read a figure by ``read`` at each look, from any thread; it must be quick.  A later reader replaces one.

        ``label``: the name of the cache, of the queue, of the kind of connection.  ``CERTIFICATE_EXPIRY`` is in seconds
        since 1970; ``CACHE_HITS`` and ``CACHE_MISSES`` are totals.
        """
        ...


class NullObserver:
    """Nobody listens."""

    def call_began(self, method: str) -> float:
        return 0.0

    def call_ended(self, method: str, began: float, collection: str, code: str, bytes_in: int,
                   bytes_out: int) -> float:
        return 0.0

    def batch_ran(self, collection: str, rows: int, waits_s: Sequence[float], compute_s: float, inline: bool) -> None:
        return None

    def queried(self, collection: str, request: QueryRequest, result: QueryResult, cost: Cost, call: Call) -> None:
        return None

    def lone_query(self, told: "LoneQuery") -> None:
        return None

    def refused(self, reason: Refusal) -> None:
        return None

    def watch(self, what: Watched, read: Callable[[], float], label: str = "") -> None:
        return None
