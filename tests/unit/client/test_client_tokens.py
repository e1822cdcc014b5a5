"""What a caller's idempotency key becomes on the way."""

import pytest

from tests.memory_backend import MemoryBackend
from vecdb.client.database import Database
from vecdb.core.errors import InvalidArgument


def _seen(backend: MemoryBackend) -> list[bytes]:
    return list(backend._tables["docs"].tokens)


def test_the_first_batch_carries_the_key_as_given_and_later_ones_their_own(backend: MemoryBackend) -> None:
    docs = Database(backend).create_collection("docs", dim=2, metric="l2")
    rows = [[n, 1.0] for n in range(5)]
    first = docs.upsert(ids=range(5), vectors=rows, batch_size=2, idempotency_key="kk")
    given, *derived = _seen(backend)
    assert given == b"kk"
    assert [len(key) for key in derived] == [16, 16]
    assert docs.upsert(ids=range(5), vectors=rows, batch_size=2, idempotency_key=b"kk") == first
    assert len(_seen(backend)) == 3
    docs.update_metadata(ids=[1], metadata={"n": 1}, idempotency_key="uu")
    docs.delete(ids=[1], idempotency_key="dd")
    docs.delete(filter="n == 1", idempotency_key="ff")
    assert _seen(backend)[3:] == [b"uu", b"dd", b"ff"]


@pytest.mark.parametrize(("key", "sent"), [("k" * 64, b"k" * 64), (b"k" * 65, None), ("k" * 5_000, None), ("Ω", None),
                                           (b"\xff\x00", None)])
def test_keys_that_do_not_fit_are_hashed(backend: MemoryBackend, key: str | bytes, sent: bytes | None) -> None:
    docs = Database(backend).create_collection("docs", dim=2, metric="l2")
    first = docs.upsert(ids=[1], vectors=[[1, 1]], idempotency_key=key)
    assert docs.upsert(ids=[1], vectors=[[1, 1]], idempotency_key=key) == first
    with pytest.raises(InvalidArgument, match="idempotency_key"):
        docs.upsert(ids=[1], vectors=[[2, 2]], idempotency_key=key)
    (carried,) = _seen(backend)
    assert carried == sent if sent is not None else len(carried) == 16
