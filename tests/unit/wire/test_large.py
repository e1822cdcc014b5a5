"""Messages written in one copy read as those that protobuf writes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecdb.core.errors import InvalidArgument
from vecdb.core.records import UpsertBatch
from vecdb.internal.v1 import shards_pb2
from vecdb.v1 import records_pb2, types_pb2
from vecdb.wire import convert
from vecdb.wire.large import sized, with_bytes
from vecdb.wire.matrix import matrix_pieces, matrix_to_wire


@given(st.binary(max_size=300) | st.integers(0, 3).map(lambda power: bytes(128**power)), st.integers(0, 2**64 - 1))
def test_a_field_of_any_length(command: bytes, group: int) -> None:
    rest = shards_pb2.ProposeRequest(group=group)
    read = shards_pb2.ProposeRequest.FromString(b"".join(with_bytes(rest, 2, command)))
    assert read == shards_pb2.ProposeRequest(group=group, command=command)


def test_numbers_of_fields_and_lengths_of_several_bytes() -> None:
    assert sized(1, 5) == b"\x0a\x05"
    assert sized(16, 300) == b"\x82\x01\xac\x02"


@pytest.mark.parametrize("array", [
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.arange(12, dtype=np.float16).reshape(3, 4)[:, ::2],
    np.arange(12, dtype=">f4").reshape(4, 3).T,
    np.arange(6, dtype=np.float64).reshape(1, 6)[::-1],
    np.arange(12, dtype=np.uint8).reshape(3, 4)[::2],
    np.arange(-6, 6, dtype=np.int8).reshape(3, 4),
    np.empty((0, 3), np.float32),
], ids=lambda array: f"{array.dtype}-{array.strides}")  # fmt: skip
def test_matrices_of_all_kinds_and_orders(array: np.ndarray) -> None:
    assert types_pb2.Matrix.FromString(b"".join(matrix_pieces(array))) == matrix_to_wire(array)


def test_a_matrix_that_cannot_be_sent_is_refused_alike() -> None:
    for bad in (np.zeros(3, np.float32), np.zeros((2, 2), np.complex64)):
        with pytest.raises(InvalidArgument, match="matrix"):
            matrix_pieces(bad)


@pytest.mark.parametrize("metadata", [(b"{}", b"{}"), (b"{}", b'{"a":1}')])
@pytest.mark.parametrize("key", [b"", b"k" * 16])
def test_a_batch(metadata: tuple[bytes, ...], key: bytes) -> None:
    vectors = np.random.default_rng(5).standard_normal((2, 700), dtype=np.float32)
    batch = UpsertBatch((7, "naïve"), vectors, metadata, shape=0xDEADBEEF)
    assert records_pb2.UpsertRequest.FromString(convert.upsert_to_bytes("docs", batch, key)) == \
        convert.upsert_to_wire("docs", batch, key)
