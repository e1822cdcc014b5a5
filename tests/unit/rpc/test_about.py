"""What a node says of itself."""

import asyncio
import threading
from typing import Any

import orjson
import pytest

from vecdb.core.access import Grant, Principal, Role
from vecdb.rpc.admin import AdminServicer
from vecdb.rpc.http.admin import AdminOperations
from vecdb.v1 import admin_pb2


class Asked:
    """As much of a request, or of a call's context, as tells who asks."""

    principal = Principal("k", "admin", (Grant(Role.ADMIN, ("*",)),))


@pytest.mark.parametrize("face", ["grpc", "http"])
def test_a_look_into_folders_is_no_work_for_the_event_loop(face: str) -> None:
    """Of a damaged disk, where what was set aside lies, it may take as long as it likes."""
    looked: list[threading.Thread] = []

    def about() -> dict[str, Any]:
        looked.append(threading.current_thread())
        return {"version": "1.2.3", "node_id": "n1", "set_aside": {"folders": 1}}

    async def ask() -> Any:
        asked: Any = Asked()
        if face == "http":
            return await AdminOperations(None, about).server(asked)
        servicer = AdminServicer(None, None, about)  # type: ignore[arg-type]  # no call of this test asks the node
        return await servicer.get_server(admin_pb2.GetServerRequest(), asked)

    reply = asyncio.run(ask())
    told = orjson.loads(reply.body)["details"] if face == "http" else orjson.loads(reply.details_json)
    assert told["set_aside"] == {"folders": 1}
    assert looked
    assert threading.current_thread() not in looked
