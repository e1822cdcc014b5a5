"""A face in a process of few file descriptors, told by lines what to do: the program of ``test_listener``.

It prints its port.  ``fill N`` uses up all descriptors but N, ``free`` gives them back; each is answered by a line with
the number of faults that were told so far.
"""

import asyncio
import os
import resource
import sys

import uvloop

from tests.unit.rpc.http.conftest import Face, opened
from vecdb.ports.observer import NullObserver
from vecdb.rpc.http import HttpFace, HttpOptions


def fill(but: int) -> list[int]:
    held: list[int] = []
    while True:
        try:
            held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            for _ in range(but):
                os.close(held.pop())
            return held


async def serve(face: Face) -> None:
    served = HttpFace(face.app(), HttpOptions(port=0), NullObserver())
    loop = asyncio.get_running_loop()
    held: list[int] = []
    print(await served.start(), flush=True)
    while line := (await loop.run_in_executor(None, sys.stdin.readline)).split():
        if line[0] == "fill":
            held += fill(int(line[1]))
        else:
            while held:
                os.close(held.pop())
        print(len(face.faults), flush=True)
    await served.stop(1.0)
    face.faults.clear()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    with opened() as made:
        uvloop.run(serve(made))
