"""Runs one command and turns whatever comes out of it into an exit code.

Nothing here may print a traceback for what a user did: that is kept for faults of vecdb itself.
"""

import os
import sys
from typing import Any

import typer

from vecdb.cli import exits
from vecdb.core.errors import VecdbError

# typer carries its own copy of click in some versions; the classes are found where its own errors have them.
_CLICK_ERROR: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def run(argv: list[str]) -> int:
    """Run the command that ``argv`` names and return its exit code."""
    as_json = "--json" in argv
    try:
        code = _guarded(argv, as_json)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more at exit; there is nobody to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.BROKEN_PIPE
    return code


def _guarded(argv: list[str], as_json: bool) -> int:
    from vecdb.cli.app import app

    try:
        result = typer.main.get_command(app).main(argv, prog_name="vecdb", standalone_mode=False)
    except VecdbError as error:
        _report(error, as_json)
        return exits.exit_code(error)
    except _CLICK_ERROR as error:
        return _usage(error, as_json)
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("\ninterrupted\n")
        return exits.INTERRUPTED
    except BrokenPipeError:
        raise
    except MemoryError:
        sys.stderr.write("vecdb: error: out of memory\n")
        return exits.STORAGE
    except Exception as fault:
        return _fault(fault, as_json)
    return result if isinstance(result, int) else exits.OK


def _report(error: VecdbError, as_json: bool) -> None:
    if as_json:
        import orjson

        sys.stderr.write(orjson.dumps(exits.error_json(error), default=str).decode() + "\n")
        return
    sys.stderr.write(f"vecdb: error: {error.message}\n")


def _fault(fault: Exception, as_json: bool) -> int:
    """A fault of vecdb: the only thing that may show a traceback, for whoever will mend it."""
    import traceback

    traceback.print_exception(fault, file=sys.stderr)
    _report(VecdbError(f"internal fault: {fault!r}; please report it with the lines above"), as_json)
    return exits.INTERNAL


def _usage(error: Any, as_json: bool) -> int:
    """A command line that cannot be understood: typer's words, our code."""
    if as_json:
        import orjson

        told = {"error": {"code": "INVALID_ARGUMENT", "kind": "Usage", "message": error.format_message(),
                          "retryable": False, "fields": {}, "exit_code": exits.USAGE}}
        sys.stderr.write(orjson.dumps(told).decode() + "\n")
        return exits.USAGE
    context = getattr(error, "ctx", None)
    if context is not None:
        sys.stderr.write(f"{context.get_usage()}\n")
    sys.stderr.write(f"vecdb: error: {error.format_message()}\n")
    if context is not None:
        sys.stderr.write(f"Try '{context.command_path} --help'.\n")
    return exits.USAGE
