"""Commands as bytes: what a log carries and every replica applies.

::

    opcode u8 | version u8 | key length u8 | key | fingerprint u64 | body

``key`` and ``fingerprint`` are the :class:`~vecdb.core.calls.WriteToken` that makes a repetition harmless (length 0:
none).  Numbers are little-endian.  Bodies:

==================  ==================================================================================
1 upsert            ids, dtype u8, row_items u32, vectors (n * row_items), metadata blobs
2 delete by ids     ids
3 delete where      the filter as JSON (:func:`~vecdb.core.filters.to_mapping`)
4 update metadata   merge u8, ids, patch blobs
5 mark              nothing
6 seal              job u64, fence u64 (:mod:`~vecdb.shard.seal`)
7 unseal            job u64, fence u64
8 import            source, run, sequence, first and last hash u64, lane u8, shard key, commands as *blobs* behind
                    their number u32, memories u32: origin u64, number u32, and of each write fingerprint, four counts,
                    first and last hash u64, part u8, its key (:mod:`~vecdb.shard.imports`)
9 adopt             first and last hash, records u64, digest 16 bytes, SHA-256, the place (:mod:`~vecdb.shard.adoption`)
==================  ==================================================================================

*ids*: n u32, then n lengths u8 (0: an integer), then the integers (u64 each), then the strings' UTF-8.  *blobs*: n
lengths u32, then the bytes.  The lengths stand together so that a batch is taken apart by columns.

Decoding trusts nothing: a replica may be handed bytes by a newer version, a bug or an enemy.  What cannot be read is
:class:`~vecdb.core.errors.InvalidArgument`, an outcome like any other; it never takes more memory than a few times
the bytes it was given.  Unknown opcodes and versions are refused, so old replicas do not half understand new ones.
"""

import struct
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson

from vecdb.core.calls import WriteToken
from vecdb.core.errors import InvalidArgument, VecdbError
from vecdb.core.filters import from_mapping, to_mapping
from vecdb.core.ids import RecordId, check_id
from vecdb.core.limits import MAX_BATCH_BYTES, MAX_BATCH_RECORDS, MAX_METADATA_BYTES
from vecdb.core.records import Command, DeleteIds, DeleteWhere, UpdateMetadata, UpsertBatch
from vecdb.shard.adoption import Adopt
from vecdb.shard.imports import Import, Memory, Remembered
from vecdb.shard.marks import Mark
from vecdb.shard.seal import Seal, Unseal

LogCommand: TypeAlias = Command | Mark | Seal | Unseal | Import | Adopt
"""What a shard's log carries."""

VERSION: Final = 1
UPSERT, DELETE_IDS, DELETE_WHERE, UPDATE_METADATA, MARK, SEAL, UNSEAL, IMPORT, ADOPT = range(1, 10)

_HEAD: Final = struct.Struct("<BBB")
_FINGERPRINT: Final = struct.Struct("<Q")
_COUNT: Final = struct.Struct("<I")
_STAMP: Final = struct.Struct("<QQ")
_PIECE: Final = struct.Struct("<5QBB")
_MEMORY: Final = struct.Struct("<QI")
_WRITE: Final = struct.Struct("<7QBB")
_ADOPT: Final = struct.Struct("<3Q16s32s")
_SHAPE: Final = struct.Struct("<BI")
_DTYPES: Final = tuple(map(np.dtype, ("<f4", "<f2", "<i1", "<u1")))
_CODES: Final = {dtype: code for code, dtype in enumerate(_DTYPES)}


def encode(command: LogCommand, token: WriteToken | None = None) -> bytes:
    """One command as bytes; :func:`decode` is the inverse."""
    opcode, parts = _body(command)
    key = b"" if token is None else token.key
    fingerprint = 0 if token is None else token.fingerprint
    return b"".join((_HEAD.pack(opcode, VERSION, len(key)), key, _FINGERPRINT.pack(fingerprint), *parts))


def decode(data: bytes | memoryview) -> tuple[LogCommand, WriteToken | None]:
    """The command and its token; raises :class:`InvalidArgument` for bytes that are none.

    Vectors are a read-only view of ``data``, which must stay as it is.
    """
    reader = _Reader(memoryview(data))
    opcode, version, key_length = reader.take(_HEAD)
    if version != VERSION:
        raise _refused(f"has version {version}, and this one reads {VERSION}", got=version, limit=VERSION)
    key = bytes(reader.bytes(key_length))
    (fingerprint,) = reader.take(_FINGERPRINT)
    try:
        token = WriteToken(key, fingerprint) if key else None
        command = _command(opcode, reader)
        reader.end()
    except VecdbError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _refused(f"cannot be read: {type(error).__name__}", got=opcode, limit="a command") from error
    return command, token


def decode_write(data: bytes | memoryview) -> Remembered:
    """What :func:`encode_write` wrote."""
    reader = _Reader(memoryview(data))
    found = _read_write(reader)
    reader.end()
    return found


def is_adopt(data: bytes) -> bool:
    """Whether it says that it is ADOPT; what else it is, reading it tells."""
    return data[:1] == bytes([ADOPT])


def key_of_write(data: bytes) -> bytes | None:
    """The idempotency key of a command that writes, empty for none; None for what is no write, or nothing that can be
    read.
    """
    if len(data) < _HEAD.size or not UPSERT <= data[0] <= UPDATE_METADATA:
        return None
    return data[_HEAD.size:_HEAD.size + data[2]]


def _refused(message: str, *, got: Any, limit: Any) -> InvalidArgument:
    return InvalidArgument("command", message, got=got, limit=limit)


# --- writing --------------------------------------------------------------------------------------


def _body(command: LogCommand) -> tuple[int, list[bytes]]:
    if isinstance(command, UpsertBatch):
        vectors = np.ascontiguousarray(command.vectors)
        dtype = vectors.dtype.newbyteorder("<")
        return UPSERT, [*_ids(command.ids), _SHAPE.pack(_CODES[dtype], vectors.shape[1]),
                        vectors.astype(dtype, copy=False).tobytes(), *_blobs(command.metadata)]
    if isinstance(command, DeleteIds):
        return DELETE_IDS, _ids(command.ids)
    if isinstance(command, DeleteWhere):
        return DELETE_WHERE, [orjson.dumps(to_mapping(command.filter))]
    if isinstance(command, Mark):
        return MARK, []
    if isinstance(command, Seal | Unseal):
        return (SEAL if isinstance(command, Seal) else UNSEAL), [_STAMP.pack(command.job, command.fence)]
    if isinstance(command, Import):
        return IMPORT, _import(command)
    if isinstance(command, Adopt):
        return ADOPT, [_ADOPT.pack(command.lo, command.last, command.records, bytes.fromhex(command.digest),
                                   bytes.fromhex(command.sha256)), command.url.encode()]
    return UPDATE_METADATA, [bytes([command.merge]), *_ids(command.ids), *_blobs(command.patch)]


def _ids(ids: tuple[RecordId, ...]) -> list[bytes]:
    texts = [b"" if isinstance(one, int) else one.encode("utf-8") for one in ids]
    numbers = np.array([one for one in ids if isinstance(one, int)], "<u8")
    return [_COUNT.pack(len(ids)), bytes(map(len, texts)), numbers.tobytes(), *texts]


def _blobs(blobs: tuple[bytes, ...]) -> list[bytes]:
    return [np.fromiter(map(len, blobs), "<u4", len(blobs)).tobytes(), *blobs]


def _import(piece: Import) -> list[bytes]:
    shard_key = piece.shard_key.encode()
    parts = [_PIECE.pack(piece.source, piece.run, piece.sequence, piece.lo, piece.last, piece.lane, len(shard_key)),
             shard_key, _COUNT.pack(len(piece.commands)), *_blobs(piece.commands), _COUNT.pack(len(piece.memories))]
    for memory in piece.memories:
        parts.append(_MEMORY.pack(memory.origin, len(memory.writes)))
        parts += map(encode_write, memory.writes)
    return parts


def encode_write(one: Remembered) -> bytes:
    """As it stands in an import; :func:`decode_write` is the inverse."""
    return _WRITE.pack(one.fingerprint, *one.counts, one.lo, one.last, one.part, len(one.key)) + one.key


# --- reading --------------------------------------------------------------------------------------


class _Reader:
    """A cursor that never passes the end."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def bytes(self, size: int) -> memoryview:
        stop = self._at + size
        if stop > len(self._data):
            raise _refused(f"ends after {len(self._data)} bytes, within its {self._at}th to {stop}th",
                           got=len(self._data), limit=stop)
        part = self._data[self._at:stop]
        self._at = stop
        return part

    def take(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self.bytes(layout.size))

    def array(self, dtype: str | np.dtype[Any], count: int) -> npt.NDArray[Any]:
        kind = np.dtype(dtype)
        return np.frombuffer(self.bytes(count * kind.itemsize), kind)

    def rest(self) -> memoryview:
        return self.bytes(len(self._data) - self._at)

    def end(self) -> None:
        if self._at != len(self._data):
            raise _refused(f"has {len(self._data) - self._at} bytes too many", got=len(self._data), limit=self._at)


def _command(opcode: int, reader: _Reader) -> LogCommand:
    if opcode == UPSERT:
        ids = _read_ids(reader)
        code, row_items = reader.take(_SHAPE)
        if code >= len(_DTYPES):
            raise _refused(f"has vectors of an unknown kind {code}", got=code, limit=len(_DTYPES) - 1)
        vectors = reader.array(_DTYPES[code], len(ids) * row_items).reshape(len(ids), row_items)
        return UpsertBatch(ids, vectors, _read_blobs(reader, len(ids)))
    if opcode == DELETE_IDS:
        return DeleteIds(_read_ids(reader))
    if opcode == DELETE_WHERE:
        return DeleteWhere(from_mapping(orjson.loads(reader.rest())))
    if opcode == UPDATE_METADATA:
        (merge,) = reader.bytes(1)
        if merge > 1:
            raise _refused(f"says {merge} where 0 or 1 stands", got=merge, limit="0 or 1")
        ids = _read_ids(reader)
        return UpdateMetadata(ids, _read_blobs(reader, len(ids)), bool(merge))
    if opcode == MARK:
        return Mark()
    if opcode in (SEAL, UNSEAL):
        return (Seal if opcode == SEAL else Unseal)(*reader.take(_STAMP))
    if opcode == IMPORT:
        return _read_import(reader)
    if opcode == ADOPT:
        lo, last, records, digest, sha256 = reader.take(_ADOPT)
        return Adopt(str(reader.rest(), "utf-8"), sha256.hex(), lo, last, records, digest.hex())
    raise _refused(f"has the opcode {opcode}, which this version does not know", got=opcode, limit=ADOPT)


def _read_import(reader: _Reader) -> Import:
    source, run, sequence, lo, last, lane, length = reader.take(_PIECE)
    shard_key = str(reader.bytes(length), "utf-8")
    if not sequence or not run or lo > last:
        raise _refused("is a piece without a place", got=sequence, limit="1 or more")
    (count,) = reader.take(_COUNT)
    lengths = reader.array("<u4", count).tolist()
    commands = tuple(bytes(reader.bytes(one)) for one in lengths)
    (count,) = reader.take(_COUNT)
    memories = tuple(_read_memory(reader) for _ in range(count))
    return Import(source, run, lane, sequence, lo, last, shard_key, commands, memories)


def _read_memory(reader: _Reader) -> Memory:
    origin, count = reader.take(_MEMORY)
    return Memory(origin, tuple(_read_write(reader) for _ in range(count)))


def _read_write(reader: _Reader) -> Remembered:
    fingerprint, inserted, updated, deleted, missing, lo, last, part, length = reader.take(_WRITE)
    token = WriteToken(bytes(reader.bytes(length)), fingerprint)
    return Remembered(token.key, fingerprint, (inserted, updated, deleted, missing), lo, last, bool(part))


def _read_ids(reader: _Reader) -> tuple[RecordId, ...]:
    (count,) = reader.take(_COUNT)
    if count > MAX_BATCH_RECORDS:
        raise _refused(f"names {count} ids, more than {MAX_BATCH_RECORDS}", got=count, limit=MAX_BATCH_RECORDS)
    lengths = bytes(reader.bytes(count))
    numbers = iter(reader.array("<u8", lengths.count(0)).tolist())
    text = reader.bytes(sum(lengths))
    ids: list[RecordId] = []
    at = 0
    for length in lengths:
        ids.append(str(text[at:at + length], "utf-8") if length else next(numbers))
        at += length
    for position, one in enumerate(ids):
        check_id(one, position)
    if len(set(ids)) != count:
        raise _refused("names an id twice", got=count, limit="distinct ids")
    return tuple(ids)


def _read_blobs(reader: _Reader, count: int) -> tuple[bytes, ...]:
    lengths = reader.array("<u4", count)
    if count and int(lengths.max()) > MAX_METADATA_BYTES:
        raise _refused(f"holds an object of {int(lengths.max())} bytes, more than {MAX_METADATA_BYTES}",
                       got=int(lengths.max()), limit=MAX_METADATA_BYTES)
    total = int(lengths.sum(dtype=np.uint64))
    if total > MAX_BATCH_BYTES:
        raise _refused(f"holds {total} bytes of objects, more than {MAX_BATCH_BYTES}", got=total,
                       limit=MAX_BATCH_BYTES)
    data = bytes(reader.bytes(total))
    stops = np.cumsum(lengths, dtype=np.int64).tolist()
    return tuple(data[stop - length:stop] for stop, length in zip(stops, lengths.tolist(), strict=True))
