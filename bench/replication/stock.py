"""A node of stock PySyncObj, as it ships: journal on, pickle and TCP its own; asked by lines (:mod:`.load`).

    python -m bench.replication.stock ADDRESS OTHER,OTHER FOLDER
"""

import sys
import threading
from pathlib import Path
from typing import Any

from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated

from bench.replication.load import Load, serve

PATIENCE_S = 30.0


class Node(SyncObj):  # type: ignore[misc]
    """Takes commands and counts them."""

    def __init__(self, address: str, others: list[str], folder: Path) -> None:
        self.count = 0
        super().__init__(address, others, SyncObjConf(journalFile=str(folder / "journal")))

    @replicated  # type: ignore[untyped-decorator]
    def put(self, payload: bytes) -> int:
        self.count += 1
        return self.count


def main() -> None:
    address, others, folder = sys.argv[1], sys.argv[2].split(","), Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    node = Node(address, others, folder)

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        if command["do"] == "status":
            return {"leads": bool(node._isLeader()), "ready": bool(node.isReady())}
        over = threading.Event()
        load = Load(command["size"], command["window"], command["seconds"], over.set,
                    lambda again: threading.Timer(0.01, again).start())
        load.begin(lambda payload, done: node.put(
            payload, callback=lambda _, reason: done("" if reason == FAIL_REASON.SUCCESS else str(reason))))
        over.wait(command["seconds"] + PATIENCE_S)
        return load.result()

    serve(answer)


if __name__ == "__main__":
    main()
