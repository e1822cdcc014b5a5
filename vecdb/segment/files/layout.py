"""The fixed parts of an array file: its first page and its directory."""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash

from vecdb.core.errors import DataCorrupted, FormatMismatch, InvalidArgument

MAGIC = b"vecdbarr"
VERSION = 1
PAGE_BYTES = 4096
BLOCK_BYTES = 1 << 20
_PAGE = struct.Struct("<8sIIQQQQQ")
_HASH = struct.Struct("<Q")
_DTYPES = frozenset(np.dtype(name).str for name in (
    "bool", "uint8", "int8", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8"))


@dataclass(frozen=True, slots=True)
class Page:
    """Places and sizes in bytes: payload ``[4096, table_at)``, block hashes, directory, end of file."""

    table_at: int
    directory_at: int
    directory_bytes: int
    directory_hash: int
    table_hash: int

    @property
    def file_bytes(self) -> int:
        return self.directory_at + self.directory_bytes


@dataclass(frozen=True, slots=True)
class ArrayEntry:
    """One array's place: little-endian dtype, C order, ``offset`` from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Directory:
    kind: str
    arrays: tuple[ArrayEntry, ...]
    meta: dict[str, Any]


def block_count(payload_bytes: int) -> int:
    return -(-payload_bytes // BLOCK_BYTES)


def round_up(offset: int) -> int:
    return -(-offset // PAGE_BYTES) * PAGE_BYTES


def stored_dtype(dtype: np.dtype[Any], name: str) -> np.dtype[Any]:
    """Return the little-endian form of ``dtype``, or refuse what is no plain number."""
    little = dtype.newbyteorder("<")
    if little.str not in _DTYPES:
        raise InvalidArgument(name, f"arrays of {dtype} cannot be stored", got=str(dtype), limit="plain numbers")
    return little


def pack_page(page: Page) -> bytes:
    body = _PAGE.pack(MAGIC, VERSION, BLOCK_BYTES, page.table_at, page.directory_at, page.directory_bytes,
                      page.directory_hash, page.table_hash)
    body = body.ljust(PAGE_BYTES - _HASH.size, b"\0")
    return body + _HASH.pack(xxhash.xxh3_64_intdigest(body))


def unpack_page(raw: bytes, file_bytes: int, path: Path) -> Page:
    """Check the first page against its hash and the file's real size."""
    if len(raw) < PAGE_BYTES:
        raise damaged(path, "header", f"the file has {file_bytes} bytes, less than its header", (0, file_bytes))
    magic, version, block_bytes, *places = _PAGE.unpack_from(raw)
    body, (stored_hash,) = raw[:-_HASH.size], _HASH.unpack(raw[-_HASH.size:])
    if xxhash.xxh3_64_intdigest(body) != stored_hash:
        if sum(a == b for a, b in zip(magic, MAGIC, strict=True)) < len(MAGIC) // 2:
            raise FormatMismatch(f"{path} is no array file of vecdb", path=str(path), region="header")
        raise damaged(path, "header", "its checksum does not match", (0, PAGE_BYTES))
    if magic != MAGIC or version != VERSION or block_bytes != BLOCK_BYTES:
        raise FormatMismatch(f"{path} has format {magic!r} version {version}; this version reads {VERSION}",
                             path=str(path), region="header", version=version, supported=VERSION)
    page = Page(*places)
    if page.file_bytes != file_bytes:
        raise damaged(path, "end", f"the file has {file_bytes} bytes and should have {page.file_bytes}",
                      (min(file_bytes, page.file_bytes), max(file_bytes, page.file_bytes)))
    return page


def pack_directory(directory: Directory) -> bytes:
    arrays = [{"name": entry.name, "dtype": entry.dtype, "shape": entry.shape, "offset": entry.offset}
              for entry in directory.arrays]
    return orjson.dumps({"kind": directory.kind, "arrays": arrays, "meta": directory.meta})


def unpack_directory(raw: bytes, page: Page, path: Path) -> Directory:
    """Check the directory against its hash, and every array's place against the payload's bounds."""
    if xxhash.xxh3_64_intdigest(raw) != page.directory_hash:
        raise damaged(path, "directory", "its checksum does not match", (page.directory_at, page.file_bytes))
    try:
        value = orjson.loads(raw)
        arrays = tuple(ArrayEntry(str(item["name"]), str(item["dtype"]), tuple(int(n) for n in item["shape"]),
                                  int(item["offset"])) for item in value["arrays"])
        directory = Directory(str(value["kind"]), arrays, dict(value["meta"]))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise FormatMismatch(f"the directory of {path} cannot be understood: {error}", path=str(path),
                             region="directory") from error
    for entry in arrays:
        if (entry.dtype not in _DTYPES or min(entry.shape, default=0) < 0 or entry.offset < PAGE_BYTES
                or entry.offset % PAGE_BYTES or entry.offset + entry.nbytes > page.table_at):
            raise FormatMismatch(f"the directory of {path} puts array {entry.name!r} where it cannot be",
                                 path=str(path), region="directory")
    return directory


def damaged(path: Path, region: str, what: str, span: tuple[int, int]) -> DataCorrupted:
    return DataCorrupted(f"{path} is damaged in its {region}, bytes {span[0]} to {span[1]}: {what}",
                         path=str(path), region=region, ranges=(span,))
