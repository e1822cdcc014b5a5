"""What a status of gRPC says of a call."""

from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from vecdb.client.remote.calling import outcome
from vecdb.client.remote.failures import failure
from vecdb.core.errors import NodeRemoved, NoNodeForReplica, OutcomeUnknown, Unavailable, VecdbError
from vecdb.wire.status import to_status


def raised(code: grpc.StatusCode, words: str, *trailing: tuple[str, str | bytes]) -> Any:
    return SimpleNamespace(code=lambda: code, details=lambda: words, trailing_metadata=lambda: trailing)


@pytest.mark.parametrize(("why", "kind"), [("removed", NodeRemoved), ("unknown_node", Unavailable)])
def test_a_node_that_others_refuse_says_so_and_another_is_asked(why: str, kind: type[VecdbError]) -> None:
    """What its peers told came to clients as an error without a kind, which nobody passes over."""
    refused = raised(grpc.StatusCode.FAILED_PRECONDITION, "'n4' was removed", ("vecdb-refused", why))
    failed = failure(refused, "of node n2")
    assert type(failed.error) is kind
    assert "'n4' was removed" in failed.error.message
    assert getattr(failed.error, "here", False) == (why == "removed")
    assert (failed.decided, failed.transport) == (True, True)


def test_what_no_node_can_do_is_asked_of_no_other() -> None:
    number, words, details = to_status(NoNodeForReplica("there are 2 nodes"), "")
    code = next(one for one in grpc.StatusCode if one.value[0] == number)
    failed = failure(raised(code, words, ("grpc-status-details-bin", details)), "n1:7700")
    assert type(failed.error) is NoNodeForReplica
    assert not failed.error.retryable
    assert (failed.decided, failed.transport) == (True, False)


def test_of_a_write_whose_end_is_open_the_attempt_that_left_it_open_is_named() -> None:
    broke, refused = Unavailable("the server a closed the connection"), Unavailable("the server b cannot be reached")
    told = outcome(refused, broke)
    assert isinstance(told, OutcomeUnknown)
    assert told.message.endswith(f"{broke.message}; since then: {refused.message}")
    assert outcome(broke, broke).message.count(broke.message) == 1
    assert outcome(refused, None) is refused
