"""Calls as they are passed on to another node."""

from vecdb.core.calls import Call, Consistency, WriteToken


def copy_of(call: Call, token: WriteToken | None = None) -> Call:
    """For one attempt: one that is given up must not stop the next."""
    return Call(call.deadline, token or call.token, call.request_id, call.principal, call.consistency, call.session,
                elsewhere=call.elsewhere)


def of_shard(call: Call, group: int) -> Call:
    """For a read on another node, where the name may be an earlier shard's yet: which one must be seen is told by a
    place in its log.
    """
    mine = copy_of(call)
    mine.session = tuple(one for one in call.session if one[0] == group)
    if not mine.session and (call.session or call.consistency is Consistency.LINEARIZABLE):
        mine.session = ((group, 0),)
    return mine
