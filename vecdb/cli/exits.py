"""Errors as exit codes: one table, listed in the package's docstring."""

from typing import Any, ClassVar, Final

from vecdb.core.errors import StorageError, VecdbError

OK: Final = 0
INTERNAL: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
PRECONDITION: Final = 4
STORAGE: Final = 5
DATA_LOSS: Final = 6
DEADLINE: Final = 7
UNKNOWN: Final = 8
UNSUPPORTED: Final = 9
DENIED: Final = 10
UNREACHABLE: Final = 11
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141

BY_CODE: Final = {
    "INTERNAL": INTERNAL,
    "INVALID_ARGUMENT": USAGE,
    "NOT_FOUND": NOT_FOUND,
    "ALREADY_EXISTS": PRECONDITION,
    "FAILED_PRECONDITION": PRECONDITION,
    "UNAVAILABLE": UNREACHABLE,
    "RESOURCE_EXHAUSTED": STORAGE,
    "DATA_LOSS": DATA_LOSS,
    "DEADLINE_EXCEEDED": DEADLINE,
    "UNKNOWN": UNKNOWN,
    "UNIMPLEMENTED": UNSUPPORTED,
    "UNAUTHENTICATED": DENIED,
    "PERMISSION_DENIED": DENIED,
    "CANCELLED": INTERRUPTED,
}


class NotFoundError(VecdbError):
    """There is no database, or no record, of that name."""

    code: ClassVar[str] = "NOT_FOUND"


class DeclinedError(VecdbError):
    """The person at the terminal said no."""

    code: ClassVar[str] = "FAILED_PRECONDITION"


class PortInUseError(VecdbError):
    """Another process listens on the port."""

    code: ClassVar[str] = "FAILED_PRECONDITION"


def exit_code(error: VecdbError) -> int:
    """The exit code of a typed error; a disk that may not be written is storage, whatever its status name."""
    if isinstance(error, StorageError):
        return STORAGE
    return BY_CODE.get(error.code, INTERNAL)


def error_json(error: VecdbError) -> dict[str, Any]:
    """An error as the JSON object that ``--json`` prints on stderr."""
    fields = {name: value if isinstance(value, str | int | float | bool | None) else str(value)
              for name, value in error.fields.items()}
    return {"error": {"code": error.code, "kind": type(error).__name__, "message": error.message,
                      "retryable": error.retryable, "fields": fields, "exit_code": exit_code(error)}}
