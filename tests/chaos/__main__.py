"""``python -m tests.chaos --rounds 200 --seed 1``: see :mod:`tests.chaos.campaign`."""

import argparse
import random
import signal
import sys
import tempfile
from pathlib import Path

from tests.chaos.attacks import ATTACKS
from tests.chaos.campaign import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description="Real faults on real nodes, under load, all checked.")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--first", type=int, default=1, help="the number of the first round (its cluster begins empty)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--attacks", default="", help=f"only these, by commas: {', '.join(ATTACKS)}")
    parser.add_argument("--place", type=Path, help="where the nodes' data is; a temporary directory unless given")
    given = parser.parse_args()
    names = [name for name in given.attacks.split(",") if name]
    if unknown := set(names) - set(ATTACKS):
        parser.error(f"no such attack: {', '.join(sorted(unknown))}")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an interrupt does: nodes end, disks are unmounted
    print(f"seed {given.seed}")
    with tempfile.TemporaryDirectory(prefix="chaos-") as place:
        tally = run(given.seed, given.first, given.rounds, given.place or Path(place), names)
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
