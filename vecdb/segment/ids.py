"""The ids of a sealed segment as arrays: eight bytes an integer, offsets and text where strings occur."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vecdb.core.ids import RecordId, id_from_key, id_key


def pack_ids(ids: Sequence[RecordId]) -> dict[str, npt.NDArray[Any]]:
    """Arrays to store: ``ints`` int64 (n,) if all are integers, else ``offsets`` int64 (n+1,) and ``text`` uint8."""
    if all(isinstance(one, int) for one in ids):
        return {"ints": np.array(ids, np.int64)}
    keys = [id_key(one) for one in ids]
    offsets = np.zeros(len(keys) + 1, np.int64)
    np.cumsum([len(key) for key in keys], out=offsets[1:])
    return {"offsets": offsets, "text": np.frombuffer(b"".join(keys), np.uint8)}


class IdColumn:
    """Ids by ordinal over (possibly mapped) arrays of :func:`pack_ids`."""

    def __init__(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        self._arrays = arrays
        self._ints = arrays.get("ints")

    def take(self, ordinals: npt.NDArray[np.integer[Any]]) -> list[RecordId]:
        if self._ints is not None:
            taken: list[RecordId] = self._ints[ordinals].tolist()
            return taken
        offsets, text = self._arrays["offsets"], self._arrays["text"]
        starts, stops = offsets[ordinals].tolist(), offsets[ordinals + 1].tolist()
        return [id_from_key(text[start:stop].tobytes()) for start, stop in zip(starts, stops, strict=True)]

    @property
    def integers(self) -> npt.NDArray[np.int64] | None:
        """All ids by ordinal, if they are integers."""
        return self._ints

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._arrays.values())
