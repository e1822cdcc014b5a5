"""The command line: ``vecdb COMMAND``; tables for people, ``--json`` for programs.

**Output.**  What was asked for goes to stdout, everything else (progress, notes, errors) to stderr.  With
``--json`` stdout holds one JSON value and nothing else; an error is then one JSON object on stderr.  Without a
terminal there are no control codes, and ``NO_COLOR`` is obeyed.

**Exit codes**, by the kind of what went wrong:

====  =========================================================================================
0     done
1     internal: a fault of vecdb
2     usage, or an argument or file that is refused; nothing was changed
3     no such collection, record, database, API key, node, shard, job or token
4     exists already, locked by another process, a port in use, a shard that is not well (``shard status``), or
      another precondition that does not hold
5     storage: disk full, read-only or unavailable; or a memory, rate or queue limit
6     data loss: damaged data was found (what could be read was printed, and says so), or replicas differ
7     the deadline passed
8     the outcome is unknown; repeating the command settles it
9     not offered: the combination asked for, or a library that is not installed
10    not let in: no API key, one that is not good, or one without the right
11    the server cannot be reached, or is starting or stopping; or some replica could not be compared
130   interrupted (Ctrl-C)
141   the reader of stdout went away
====  =========================================================================================

**Startup.**  Commands import what they need when they run: help, refusals and ``plan`` load no engine, and only what
reads a Parquet file loads pyarrow.  ``tests/unit/cli/test_startup.py`` holds what may not be imported.
"""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``argv`` defaults to the process's arguments."""
    from vecdb.cli.run import run

    return run(sys.argv[1:] if argv is None else list(argv))


__all__ = ["main"]
