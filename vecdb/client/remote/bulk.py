"""Bulk upsert over the network: several streams, each with a batch that is applied and one that arrives.

The first batch goes alone, as a plain call: most calls have no second one, and it proves the address, the key and the
schema before several batches are on their way.

Order.  A stream applies its batches one after the other; streams run beside each other, and the server's writes share
their fsyncs.  A batch that holds an id which is still under way waits until that is answered, so the last of equal ids
wins as if there were one stream.  Answers are taken in the order of the batches: ``on_applied`` sees what one loop
would have seen.

Reconnection.  Every batch keeps its idempotency key.  When a stream breaks, what was not answered is sent again on a
new one, at another address if there is one that is up: a batch whose answer was lost is answered with what it did
then.  A node that answers batches by saying that it serves nobody is left in the same way.  Without keys
(``retry_writes=False``) nothing is sent twice: a broken stream is OutcomeUnknown.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from vecdb.client.remote import methods as m
from vecdb.client.remote.calling import LONG_S, left, outcome, read
from vecdb.client.remote.io import Route, Sleep
from vecdb.client.remote.procedures import Procedures
from vecdb.client.remote.retry import STREAM_RETRIES, Attempts, Failed
from vecdb.client.remote.streams import Open, Read, Stream, Write
from vecdb.client.steps import END, Next, Steps
from vecdb.client.writing import Batch
from vecdb.core.calls import Call, check
from vecdb.core.errors import DeadlineExceeded, OutcomeUnknown, Unavailable, VecdbError
from vecdb.core.ids import RecordId
from vecdb.core.records import WriteResult
from vecdb.v1 import records_pb2 as r
from vecdb.wire import convert
from vecdb.wire.status import from_error

MOVES: Final = 4
"""Streams that are left for a node that may lead, for each lane and address: where shards of a collection have several
leaders, none of them does all of it."""
DEPTH: Final = 2
"""Batches of one stream under way."""
WINDOW_BYTES: Final = 64 << 20
"""Most bytes under way in one call, all streams together (one batch always fits)."""

Applied = Callable[[int, WriteResult], None]


@dataclass(slots=True, eq=False)
class Flight:
    """A batch on its way; ``result`` or ``error`` when it was answered.  ``keyed``: it may be sent again."""

    rows: int
    ids: frozenset[RecordId]
    payload: bytes
    keyed: bool
    lane: "Lane"
    result: WriteResult | None = None
    error: VecdbError | None = None


@dataclass(slots=True, eq=False)
class Lane:
    """A stream and what was sent on it without an answer yet, in order.  ``handed_on``: batches, one after the other,
    that its node handed on.
    """

    stream: Stream | None = None
    handed_on: int = 0
    waiting: deque[Flight] = field(default_factory=deque)


class BulkUpsert:
    """One bulk upsert; :meth:`steps` runs it."""

    def __init__(self, procedures: Procedures, name: str, batches: Any, on_applied: Applied, parallel: int,
                 call: Call | None) -> None:
        self._procedures = procedures
        self._name = name
        self._batches = batches
        self._on_applied = on_applied
        self._call = call
        self._deadline = None if call is None else call.deadline
        self._attempts = Attempts(max(STREAM_RETRIES, procedures.caller.options.retries)
                                  if procedures.caller.options.retries else 0,
                                  procedures.caller.budget, self._deadline, procedures.caller.addresses)
        self._lanes = [Lane() for _ in range(parallel)]
        self._order: deque[Flight] = deque()
        self._bytes = 0
        self._busy: set[RecordId] = set()
        self._moves = 0

    def steps(self) -> Steps[None]:
        """Apply every batch; the first error is raised when what is under way has been answered."""
        first = yield Next(self._batches)
        if first is END:
            return
        call = first.call(self._call)
        self._on_applied(first.rows, (yield from self._procedures.upsert(self._name, first.batch, call)))
        try:
            yield from self._all()
        except VecdbError as error:
            self._tell_beyond(error)
            raise
        finally:
            for lane in self._lanes:
                if lane.stream is not None:
                    lane.stream.cancel()

    def _all(self) -> Steps[None]:
        while True:
            try:
                item = yield Next(self._batches)
            except Exception:
                yield from self._drain()
                raise
            if item is END:
                yield from self._drain()
                yield from self._finish()
                return
            yield from self._send(item)

    def _send(self, item: Batch) -> Steps[None]:
        ids = frozenset(item.batch.ids)
        call = item.call(self._call)
        key = self._procedures.key_of(call)
        payload = convert.upsert_to_bytes(self._name, item.batch, key)
        while self._order and (len(self._order) >= DEPTH * len(self._lanes)
                               or self._bytes + len(payload) > WINDOW_BYTES or not self._busy.isdisjoint(ids)):
            yield from self._settle()
        while (lane := self._lane()).waiting and self._strays(lane):
            yield from self._settle()  # a stream is left when all that was sent on it is answered
        flight = Flight(item.rows, ids, payload, bool(key), lane)
        self._order.append(flight)
        self._busy |= ids
        self._bytes += len(payload)
        yield from self._push(flight)

    def _lane(self) -> Lane:
        return min(self._lanes, key=lambda one: (bool(one.waiting) and self._strays(one), len(one.waiting)))

    def _push(self, flight: Flight) -> Steps[None]:
        lane = flight.lane
        if lane.stream is not None and not lane.waiting and self._strays(lane):
            lane.stream.cancel()  # all that was sent on it is answered
            lane.stream, lane.handed_on = None, 0
            self._moves += 1
        lane.waiting.append(flight)
        try:
            if lane.stream is None:
                lane.stream = yield from self._open()
            yield Write(lane.stream, flight.payload)
        except Failed as failed:
            yield from self._reopen(lane, failed)

    def _open(self) -> Steps[Stream]:
        caller = self._procedures.caller
        route = caller.route(self._name)
        stream: Stream = yield Open(m.UPSERT_STREAM, b"", left(self._deadline, LONG_S),
                                    caller.metadata(self._call), route)
        return stream

    def _strays(self, lane: Lane) -> bool:
        """Whether a lane's stream is with a node that hands its batches on, and another one may lead."""
        caller = self._procedures.caller
        return (lane.stream is not None and self._moves < MOVES * caller.addresses * len(self._lanes)
                and caller.strays(self._name, lane.stream.link, lane.handed_on))

    def _reopen(self, lane: Lane, failed: Failed) -> Steps[None]:
        """A new stream, and everything unanswered once more; raises when that is given up."""
        while True:
            check(self._call)
            if lane.stream is not None:
                self._procedures.caller.forget(Route(lane.stream.link.label, self._name))
                lane.stream.cancel()
                lane.stream, lane.handed_on = None, 0
            if isinstance(failed.error, DeadlineExceeded):
                wait: float | None = 0.0
                try:
                    left(self._deadline)  # the stream's own time was over, not the caller's
                except DeadlineExceeded:
                    wait = None
            else:
                wait = self._attempts.after(failed)
            if not failed.decided and not all(flight.keyed for flight in lane.waiting):
                wait = None
            if wait is None:
                raise outcome(failed.error, None if failed.decided else failed.error) from None
            yield Sleep(wait)
            try:
                lane.stream = yield from self._open()
                for flight in lane.waiting:
                    yield Write(lane.stream, flight.payload)
                return
            except Failed as again:
                # What an earlier attempt may have done stays unknown.
                failed = Failed(again.error, decided=again.decided and failed.decided)

    def _settle(self) -> Steps[None]:
        """Wait for the answer to the oldest batch, and send it again if it was refused for the moment."""
        flight = self._order[0]
        while flight.result is None:
            while flight.result is None and flight.error is None:
                yield from self._read(flight.lane)
            if flight.error is None:
                break
            error, flight.error = flight.error, None
            if self._movable(flight.lane, error):
                flight.lane.waiting.appendleft(flight)
                yield from self._reopen(flight.lane, Failed(error, decided=True, elsewhere=True))
                continue
            wait = self._attempts.delay(error)
            if wait is None or (isinstance(error, OutcomeUnknown) and not flight.keyed):
                self._forget()
                yield from self._drain(error)
                raise error
            yield Sleep(wait)
            yield from self._push(flight)
        self._forget()
        self._attempts.progress()
        self._procedures.caller.budget.gain()
        self._on_applied(flight.rows, flight.result)

    def _movable(self, lane: Lane, error: VecdbError) -> bool:
        """Whether a lane is to go on at another address: its node serves nobody, and another one may."""
        serves_nobody = isinstance(error, Unavailable) or bool(error.fields.get("elsewhere"))
        return (serves_nobody and lane.stream is not None and lane.stream.link.refused()
                and all(flight.keyed for flight in lane.waiting))

    def _forget(self) -> None:
        flight = self._order.popleft()
        self._busy -= flight.ids
        self._bytes -= len(flight.payload)

    def _read(self, lane: Lane) -> Steps[None]:
        """One answer of a stream goes to the batch that has waited longest on it."""
        assert lane.stream is not None
        try:
            raw = yield Read(lane.stream)
            if raw is None:
                raise Failed(Unavailable("the server ended the stream"), decided=False)
        except Failed as failed:
            yield from self._reopen(lane, failed)
            return
        reply = read(r.UpsertReply, raw)
        flight = lane.waiting.popleft()
        if reply.HasField("error"):
            flight.error = from_error(reply.error)
        else:
            flight.result = convert.write_result_from_wire(reply.result)
            lane.handed_on = lane.handed_on + 1 if reply.result.handed_on else 0
            self._procedures.caller.learn(self._name, lane.stream.link.label, reply.result.handed_on)

    def _drain(self, because: VecdbError | None = None) -> Steps[None]:
        """Wait for what is under way; ``because``: the call has failed, and only the answers are wanted."""
        if because is None:
            while self._order:
                yield from self._settle()
            return
        broken: list[Lane] = []
        for flight in tuple(self._order):
            try:
                while flight.result is None and flight.error is None and flight.lane not in broken:
                    yield from self._read(flight.lane)
            except VecdbError:
                broken.append(flight.lane)

    def _tell_beyond(self, error: VecdbError) -> None:
        """The call has failed: what was applied behind the batch that did must be found all the same."""
        beyond = 0
        for flight in self._order:
            if flight.result is not None:
                beyond += flight.rows
                self._on_applied(0, flight.result)  # none of the rows that count
        self._order.clear()
        if beyond:
            error.fields["rows_applied_beyond"] = beyond

    def _finish(self) -> Steps[None]:
        """Say on every stream that no more comes, and hear its good end."""
        for lane in self._lanes:
            if lane.stream is not None:
                yield Write(lane.stream, None)
                try:
                    yield Read(lane.stream)
                except Failed:
                    continue  # every batch was answered: how the stream ends is no matter
                lane.stream = None


__all__ = ["Applied", "BulkUpsert"]
