"""``vecdb warmup``: kernels are compiled now, and not by the first start of a server or the first query."""

import time

from vecdb.cli import options as o
from vecdb.cli.output import Output, duration


def warmup(as_json: o.Json = False) -> None:
    """Compile the usual kernels, for this user on this machine; those that are compiled are only loaded."""
    out, begin = Output(as_json), time.monotonic()
    out.note("loading, or compiling, the usual kernels")
    from vecdb.ann import warmup as kernels

    steps = 0

    def progress(done: int, of: int, step: str) -> None:
        nonlocal steps
        steps = of
        if step:
            out.note(f"kernels {done}/{of} {step}")

    kernels.warmup(progress=progress)
    spent = time.monotonic() - begin
    if as_json:
        out.emit({"steps": steps, "seconds": round(spent, 3)})
    else:
        out.say(f"kernels are ready, after {duration(spent)}")
