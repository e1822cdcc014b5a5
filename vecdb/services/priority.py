"""Threads whose work may wait: building, sealing, samples."""

import os
import sys
import threading
from contextlib import suppress
from typing import Final

UPKEEP: Final = 10
"""Nice value of upkeep: under load it gets a tenth of what a thread that answers gets, on idle cores all there is.

Not 19: upkeep holds the interpreter's lock for moments, and a thread that is never scheduled would keep everybody
waiting for it.
"""


def give_way(nice: int) -> None:
    """Lower the priority of the calling thread alone, and of threads it starts; only Linux can."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
