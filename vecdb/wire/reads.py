"""What a read must have seen: the consistency it asks for and the positions of its session, beside what it reads."""

from collections.abc import Sequence
from typing import Final, TypeAlias

from vecdb.core.calls import Call, Consistency
from vecdb.core.cluster import MAX_COLLECTION_SHARDS
from vecdb.core.errors import InvalidArgument, LimitExceeded
from vecdb.core.limits import MAX_POSITIONS
from vecdb.v1 import collections_pb2, queries_pb2, records_pb2, types_pb2

ReadRequest: TypeAlias = (queries_pb2.QueryRequest | records_pb2.FetchRequest | records_pb2.ScanRequest
                          | records_pb2.CountRequest | collections_pb2.DescribeCollectionRequest
                          | collections_pb2.OptimizeCollectionRequest)

_TO_WIRE: Final = {
    Consistency.EVENTUAL: types_pb2.CONSISTENCY_EVENTUAL,
    Consistency.SESSION: types_pb2.CONSISTENCY_SESSION,
    Consistency.LINEARIZABLE: types_pb2.CONSISTENCY_LINEARIZABLE,
}
_FROM_WIRE: Final = {wire: consistency for consistency, wire in _TO_WIRE.items()}


def read_to_wire(call: Call | None) -> types_pb2.ReadOptions | None:
    """Write what ``call`` asks of a read; None where that is the default: eventual, and no positions."""
    if call is None or not (call.session or call.consistency is not Consistency.EVENTUAL or call.allow_partial
                            or call.shards):
        return None
    return types_pb2.ReadOptions(
        consistency=_TO_WIRE[call.consistency], allow_partial=call.allow_partial, shards=call.shards,
        session=[types_pb2.Position(shard=shard, log_index=log_index) for shard, log_index in call.session])


def put_read(msg: ReadRequest, call: Call | None) -> None:
    """Set ``read`` of a request to what ``call`` asks for, if that is anything."""
    options = read_to_wire(call)
    if options is not None:
        msg.read.CopyFrom(options)


def read_from_wire(msg: ReadRequest, call: Call) -> None:
    """Put what a request asks for on ``call``, which has the defaults already.

    Of several positions of one shard the furthest counts.
    """
    if not msg.HasField("read"):
        return
    options = msg.read
    consistency = None
    if options.consistency != types_pb2.CONSISTENCY_UNSPECIFIED:
        consistency = _FROM_WIRE.get(options.consistency)
        if consistency is None:
            raise InvalidArgument("consistency", "is not known to this server", got=options.consistency,
                                  limit=", ".join(Consistency))
    set_read(call, consistency, [(one.shard, one.log_index) for one in options.session])
    call.allow_partial = options.allow_partial
    if options.shards:
        call.shards = _shards(options.shards)


def _shards(given: Sequence[int]) -> tuple[int, ...]:
    if len(given) > MAX_COLLECTION_SHARDS:
        raise LimitExceeded("shards", f"{len(given)} shards, more than {MAX_COLLECTION_SHARDS}", got=len(given),
                            limit=MAX_COLLECTION_SHARDS)
    return tuple(dict.fromkeys(given))


def set_read(call: Call, consistency: Consistency | None, session: Sequence[tuple[int, int]]) -> None:
    """Put on ``call`` what a read must have seen; None: session where positions are given, eventual where none are."""
    if len(session) > MAX_POSITIONS:
        raise LimitExceeded("session", f"{len(session)} positions, more than {MAX_POSITIONS}", got=len(session),
                            limit=MAX_POSITIONS)
    if session:
        furthest: dict[int, int] = {}
        for shard, log_index in session:
            furthest[shard] = max(furthest.get(shard, 0), log_index)
        call.session = tuple(furthest.items())
    call.consistency = consistency or (Consistency.SESSION if session else Consistency.EVENTUAL)
