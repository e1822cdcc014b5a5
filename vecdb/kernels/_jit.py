"""How kernels are compiled: two decorators, named fast-math flags, and a cache that is right.

``inline`` marks helpers that are always inlined into their caller; ``kernel`` marks entries, which run without
the GIL and are cached on disk.  Numba's own cache is keyed by the entry's bytecode and the time stamp of its
file: it does not see a change in a helper of another file, and it never hits for a function made by a factory
(the closure's dispatchers carry a fresh identity in every process).  The cache here is keyed by a *fingerprint*
of everything an entry reaches: its code, and that of each helper, intrinsic and constant named in it, so that
a stale kernel cannot be loaded and a kernel made per code family is found again by the next process.
"""

import contextlib
import functools
import hashlib
import pickle
import types
from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic

REASSOCIATE = frozenset({"reassoc", "contract", "nsz", "arcp"})
"""Fast-math without the NaN and Inf assumptions, which input that nobody checked would break."""

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}
_CONSTANTS = (int, float, str, bytes, bool, type(None))


class Compiled:
    """``count``: kernels that this process has compiled, rather than loaded from the disk."""

    count = 0


def inline(function: Callable[..., Any]) -> Any:
    """Compile ``function`` into each of its callers; never cached by itself."""
    return njit(forceinline=True, **_OPTIONS)(function)


def kernel(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Make an entry: compiled lazily, run without the GIL, cached on disk under ``name`` (unique, no spaces)."""

    def decorate(function: Callable[..., Any]) -> Any:
        function.__qualname__ = name
        dispatcher: Any = njit(**_OPTIONS)(function)
        dispatcher._cache = _KernelCache(function)
        return dispatcher

    return decorate


def signatures(entry: Any) -> tuple[Any, ...]:
    """The signatures an entry has been compiled or loaded for, so that tests can pin them."""
    return tuple(entry.signatures)


class _KernelCache(FunctionCache):  # type: ignore[misc]
    """Numba's function cache, keyed by fingerprint, that treats any damage or refusal of the disk as a miss."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._filename_base = self._impl.filename_base

    @functools.cached_property
    def _print(self) -> str:
        return fingerprint(self._py_func)

    def _file(self) -> IndexDataCacheFile:
        return IndexDataCacheFile(self._cache_path, self._filename_base, self._print)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        self._cache_file = self._file()
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a torn or foreign cache file must cost a compilation, not a start
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        Compiled.count += 1
        self._cache_file = self._file()
        # a full or read-only disk: the kernel lives for this process only; a damaged index is begun anew, once
        with contextlib.suppress(OSError):
            try:
                super().save_overload(sig, data)
            except (pickle.UnpicklingError, EOFError, ValueError, IndexError, AttributeError, ImportError):
                self._cache_file.flush()
                super().save_overload(sig, data)

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (sig, codegen.magic_tuple(), self._print)


def fingerprint(function: Callable[..., Any]) -> str:
    """A hash of all code that ``function`` reaches inside vecdb, in the order it is met."""
    digest = hashlib.sha256()
    _feed(digest, function, {})
    return digest.hexdigest()


def _feed(digest: Any, value: Any, seen: dict[int, int]) -> None:
    if isinstance(value, Dispatcher):
        value = value.py_func
    elif isinstance(value, _Intrinsic):
        value = value._defn
    if isinstance(value, _CONSTANTS):
        digest.update(repr(value).encode())
    elif isinstance(value, tuple | list):
        for item in value:
            _feed(digest, item, seen)
    elif isinstance(value, types.FunctionType) and value.__module__.startswith(("vecdb.", "tests.", "bench.")):
        if id(value) in seen:
            digest.update(b"#%d" % seen[id(value)])
            return
        seen[id(value)] = len(seen)
        _feed_code(digest, value.__code__, value, seen)
    else:
        digest.update(getattr(value, "__qualname__", type(value).__qualname__).encode())


def _feed_code(digest: Any, code: types.CodeType, owner: types.FunctionType, seen: dict[int, int]) -> None:
    digest.update(code.co_code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _feed_code(digest, constant, owner, seen)
        else:
            digest.update(repr(constant).encode())
    cells = dict(zip(owner.__code__.co_freevars, owner.__closure__ or (), strict=True))
    for name in (*code.co_names, *code.co_freevars):
        digest.update(name.encode())
        if name in cells:
            _feed(digest, cells[name].cell_contents, seen)
        elif name in owner.__globals__:
            value = owner.__globals__[name]
            _feed(digest, value, seen)
            if isinstance(value, types.ModuleType) and value.__name__.startswith("vecdb."):
                for attribute in code.co_names:
                    _feed(digest, getattr(value, attribute, None), seen)
