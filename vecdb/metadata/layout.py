"""The bytes of a sealed index: named arrays in checksummed regions, one region a field.

    magic     8 bytes
    size      uint64   bytes of the directory
    checksum  uint64   XXH3-64 of the directory
    directory JSON     {"meta": {...}, "regions": [[name, offset, size, checksum, {array: [dtype, offset, items]}]]}
    regions            each starts on a 64-byte line; offsets count from the first, arrays' from their region

The directory is read at opening; a region is checked and taken apart when it is first asked for, so that
opening costs the same however much is indexed.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import xxhash

from vecdb.core.errors import DataCorrupted

MAGIC = b"VDBMETA1"
_HEAD = len(MAGIC) + 16
_LINE = 64
_ALIGN = 8
_DTYPES = ("|u1", "<u4", "<u8", "<i8", "<f8")

Arrays = dict[str, npt.NDArray[Any]]


def _up(size: int, to: int) -> int:
    return -(-size // to) * to


def pack(meta: dict[str, Any], regions: list[tuple[str, Arrays]]) -> bytes:
    """Return the bytes of ``regions`` (name, arrays by name) under a directory with ``meta``."""
    entries: list[list[Any]] = []
    parts: list[bytes] = []
    at = 0
    for name, arrays in regions:
        table: dict[str, list[Any]] = {}
        body = bytearray()
        for key, array in arrays.items():
            body.extend(bytes(_up(len(body), _ALIGN) - len(body)))
            table[key] = [array.dtype.str, len(body), len(array)]
            body.extend(np.ascontiguousarray(array).tobytes())
        entries.append([name, at, len(body), xxhash.xxh3_64_intdigest(body), table])
        parts += [bytes(body), bytes(_up(len(body), _LINE) - len(body))]
        at += _up(len(body), _LINE)
    directory = orjson.dumps({"meta": meta, "regions": entries})
    head = MAGIC + len(directory).to_bytes(8, "little") + xxhash.xxh3_64_intdigest(directory).to_bytes(8, "little")
    padding = bytes(_up(_HEAD + len(directory), _LINE) - _HEAD - len(directory))
    return b"".join((head, directory, padding, *parts))


@dataclass(frozen=True, slots=True)
class _Region:
    at: int
    size: int
    checksum: int
    table: dict[str, list[Any]]


class Container:
    """A packed buffer, opened: ``meta`` and the arrays of each region, which borrow the buffer.

    ``path`` names the buffer in errors.  Raises :class:`DataCorrupted` wherever bytes are not what was packed.
    """

    def __init__(self, buffer: memoryview, path: str) -> None:
        self.path = path
        self.buffer = buffer.cast("B") if buffer.format != "B" or buffer.ndim != 1 else buffer
        size, checksum = self._head()
        directory = self.buffer[_HEAD : _HEAD + size]
        if len(directory) != size or xxhash.xxh3_64_intdigest(directory) != checksum:
            raise self.corrupted("the directory does not match its checksum")
        self._base = _up(_HEAD + size, _LINE)
        try:
            parsed = orjson.loads(directory)
            self.meta: dict[str, Any] = parsed["meta"]
            self._regions = {str(name): _Region(int(at), int(length), int(check), dict(table))
                             for name, at, length, check, table in parsed["regions"]}
        except (ValueError, TypeError, KeyError) as error:
            raise self.corrupted(f"the directory cannot be understood: {error}") from error

    def _head(self) -> tuple[int, int]:
        if bytes(self.buffer[: len(MAGIC)]) != MAGIC:
            raise self.corrupted("not a metadata index, or of another version")
        if len(self.buffer) < _HEAD:
            raise self.corrupted("cut short")
        return (int.from_bytes(self.buffer[8:16], "little"), int.from_bytes(self.buffer[16:24], "little"))

    def corrupted(self, why: str) -> DataCorrupted:
        return DataCorrupted(f"metadata index: {why}", path=self.path)

    @property
    def names(self) -> list[str]:
        return list(self._regions)

    def __contains__(self, name: str) -> bool:
        return name in self._regions

    def arrays(self, name: str) -> Arrays:
        """Return the arrays of a region, read-only views of the buffer, checksum verified."""
        region = self._regions[name]
        start = self._base + region.at
        body = self.buffer[start : start + region.size]
        if region.at < 0 or len(body) != region.size or xxhash.xxh3_64_intdigest(body) != region.checksum:
            raise self.corrupted(f"the postings of {name!r} do not match their checksum")
        try:
            out: Arrays = {}
            for key, (dtype, offset, items) in region.table.items():
                if dtype not in _DTYPES or offset < 0 or items < 0:
                    raise ValueError(f"array {key!r} of {dtype!r}")
                out[key] = np.frombuffer(body, dtype, items, offset) if items else np.empty(0, dtype)
                out[key].flags.writeable = False
            return out
        except (ValueError, TypeError) as error:
            raise self.corrupted(f"the postings of {name!r} cannot be understood: {error}") from error


def finite(array: npt.NDArray[np.float64]) -> bool:
    """Whether an array of floats holds no NaN or infinity."""
    return len(array) == 0 or (math.isfinite(float(array.min())) and math.isfinite(float(array.max())))
