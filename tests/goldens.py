"""Golden files: what was measured once, compared with what is measured now.

``VECDB_REWRITE_GOLDEN=1`` writes instead of comparing.  Figures may move by ``tolerance``, because other machines fuse
and order float operations otherwise; what moves further is a change somebody must look at.
"""

import json
import os
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"


def check(name: str, measured: dict[str, float], *, tolerance: float) -> None:
    """Compare ``measured`` with ``tests/golden/<name>.json``, or write it."""
    path = FOLDER / f"{name}.json"
    rounded = {key: round(float(value), 4) for key, value in measured.items()}
    if os.environ.get("VECDB_REWRITE_GOLDEN"):
        path.write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")
        return
    golden = json.loads(path.read_text(encoding="utf-8"))
    assert set(rounded) == set(golden), f"{path.name} holds other figures; rewrite it with VECDB_REWRITE_GOLDEN=1"
    moved = {key: (golden[key], value) for key, value in rounded.items() if abs(value - golden[key]) > tolerance}
    assert not moved, f"{path.name}: (golden, now) {moved}"
