"""What a read must have seen, from a request's body or from its parameters."""

from pydantic import Field

from vecdb.core.calls import Consistency
from vecdb.rpc.http import models
from vecdb.rpc.http.operations import NoParams, Request
from vecdb.wire.reads import set_read


class ReadParams(NoParams):
    """Of reads that have no body."""

    consistency: models.Level | None = Field(default=None, description=models.CONSISTENCY)
    session: str | None = Field(default=None, pattern=r"^[0-9]{1,19}:[0-9]{1,19}(,[0-9]{1,19}:[0-9]{1,19})*$",
                                max_length=2_048,
                                description="writes that must be seen, as shard:log_index, separated by commas")


def see(request: Request, given: models.Read) -> None:
    """Let the call see what its body asks for."""
    request.call.allow_partial = getattr(given, "allow_partial", False)
    if given.consistency or given.session:
        level = None if given.consistency is None else Consistency(given.consistency)
        set_read(request.call, level, [(one.shard, one.log_index) for one in given.session])


def see_by_parameters(request: Request) -> None:
    """Let the call see what its :class:`ReadParams` ask for."""
    level, text = request.params.consistency, request.params.session
    if level or text:
        pairs = [one.split(":") for one in text.split(",")] if text else []
        set_read(request.call, None if level is None else Consistency(level),
                 [(int(shard), int(log_index)) for shard, log_index in pairs])
