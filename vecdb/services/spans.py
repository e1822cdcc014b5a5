"""The spans of a query between its call and its kernels: the wait for a turn, and the batch it ran in.

A batch runs for several calls at once.  It is a child of the first traced one and linked to the others, which is what
OpenTelemetry has links for; each call's wait is a child of its own.
"""

from collections.abc import Callable, Sequence

from vecdb.core.calls import Call
from vecdb.core.query import QueryRequest, QueryResult
from vecdb.ports import tracing
from vecdb.ports.tracing import Span

Run = Callable[[str, QueryRequest, Call], QueryResult]


def waiting() -> Span | None:
    """The span of the call that is about to wait, if it is traced; 0.1 µs when nothing is."""
    return tracing.get().current()


def run_batch(run: Run, name: str, request: QueryRequest, call: Call, waited: Sequence[tuple[Span, float]],
              began_s: float) -> QueryResult:
    """``run`` inside a span, in any thread; ``waited``: traced calls and when each began to wait.

    Moments are on ``time.monotonic``.  With nothing traced this is ``run``.
    """
    if not waited:
        return run(name, request, call)
    tracer = tracing.get()
    for span, arrived_s in waited:
        tracer.record("queue", span, arrived_s, began_s)
    first, *others = [span for span, _ in waited]
    about: dict[str, tracing.Value] = {"db.collection.name": name, "db.operation.name": "query",
                                       "db.system.name": "vecdb", "db.operation.batch.size": len(request.vectors)}
    with tracer.start("batch", parent=first, attributes=about, links=others):
        return run(name, request, call)
