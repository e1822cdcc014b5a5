"""A bulk upsert from inside: what is told when it is given up."""

import numpy as np
import pytest

from vecdb.client.remote.bulk import BulkUpsert, Flight, Lane
from vecdb.client.remote.options import Options
from vecdb.client.remote.procedures import Procedures
from vecdb.client.steps import Steps
from vecdb.client.writing import Batch
from vecdb.core.errors import Unavailable
from vecdb.core.records import UpsertBatch, WriteResult


def test_answers_that_had_come_when_it_was_given_up_are_told() -> None:
    """A session must find those rows, whatever became of the batch before them."""
    seen: list[tuple[int, int]] = []
    bulk = BulkUpsert(Procedures(Options(), "", 1), "docs", None,
                      lambda rows, result: seen.append((rows, result.log_index)), 2, None)
    broken, well = bulk._lanes
    flights = [Flight(1, frozenset([number]), b"", True, broken if number % 2 == 0 else well) for number in range(4)]
    flights[2].result = WriteResult(inserted=1, shard=1, log_index=9)  # before the stream broke under the one before

    def read(lane: Lane) -> Steps[None]:
        if lane is broken:
            raise Unavailable("given up")
        flights[1].result, flights[3].result = WriteResult(log_index=7), WriteResult(log_index=8)
        return
        yield

    def first(*_: object) -> Steps[WriteResult]:
        return WriteResult(log_index=5)
        yield

    def others() -> Steps[None]:
        bulk._order.extend(flights)
        yield from bulk._drain(Unavailable("the call has failed"))
        yield from bulk._settle()

    bulk._read, bulk._all = read, others  # type: ignore[method-assign]
    bulk._procedures.upsert = first  # type: ignore[method-assign,assignment]
    steps = bulk.steps()
    next(steps)
    with pytest.raises(Unavailable) as info:
        steps.send(Batch(1, UpsertBatch((9,), np.zeros((1, 2), np.float32), (b"{}",))))
    assert seen == [(1, 5), (0, 7), (0, 9), (0, 8)]
    assert info.value.fields["rows_applied_beyond"] == 3
