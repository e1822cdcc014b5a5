"""Refusing a message of very many small parts before it is taken apart.

Protobuf reads with the GIL, so a thread would be no help: 32 MiB of empty strings hold every other call for a second or
more.  Large messages that this API has a use for are few large parts, two for each record at most.
"""

from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from vecdb.core.limits import MAX_BATCH_RECORDS

COUNTED_BYTES: Final = 32 << 10
"""Shorter messages are read in a millisecond or two, whatever is in them."""
MOST_PARTS: Final = 2 * MAX_BATCH_RECORDS + 16_384
"""An id and metadata for each record of the largest batch, and what else a message may have."""
_PACKED: Final = -1
_SCALARS: Final = frozenset({FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE,
                             FieldDescriptor.TYPE_GROUP})


def parts(raw: bytes, kind: type[Message]) -> int:
    """Fields of the message in ``raw``, at every depth; of more than :data:`MOST_PARTS` it is only known that."""
    from vecdb.kernels.messages import count_parts  # a front process does without compiled code

    return int(count_parts(np.frombuffer(raw, np.uint8), _kinds(kind.DESCRIPTOR), MOST_PARTS))


@lru_cache
def _kinds(message: Descriptor) -> npt.NDArray[np.int16]:
    """What :func:`~vecdb.kernels.messages.count_parts` must know of a message's fields."""
    types: list[Descriptor] = [message]
    rows: list[dict[int, int]] = []
    while len(rows) < len(types):
        rows.append({field.number: _code(field, types) for field in types[len(rows)].fields})
    out = np.zeros((len(rows), 1 + max((number for row in rows for number in row), default=0)), np.int16)
    for place, row in enumerate(rows):
        for number, code in row.items():
            out[place, number] = code
    return out


def _code(field: FieldDescriptor, types: list[Descriptor]) -> int:
    if field.message_type is not None:
        if field.message_type not in types[1:]:  # 0 says that a field is no message
            types.append(field.message_type)
        return types.index(field.message_type, 1)
    return _PACKED if field.is_repeated and field.type not in _SCALARS else 0
