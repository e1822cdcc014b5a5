"""One write has one fingerprint, whichever face it comes by; another write has another."""

import itertools
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecdb
from tests.served import Node
from vecdb import F
from vecdb.core.errors import InvalidArgument, LimitExceeded
from vecdb.core.filters import parse
from vecdb.core.fingerprint import fingerprint, token_of
from vecdb.core.records import Command, DeleteIds, DeleteWhere, UpdateMetadata, UpsertBatch

ONES = np.ones((2, 3), np.float32)


def upsert(ids: tuple[Any, ...] = (1, 2), vectors: Any = ONES, metadata: tuple[bytes, ...] = (b"{}", b"{}")) -> Command:
    return UpsertBatch(ids, vectors, metadata)


DIFFERENT: list[Command] = [
    upsert(), upsert((2, 1)), upsert(("1", "2")), upsert((1, "2")), upsert(("1", 2)), upsert(("12", "")),
    upsert(vectors=2 * ONES), upsert(vectors=-ONES), upsert(vectors=ONES.astype(np.float16)),
    upsert(vectors=ONES.view(np.uint8)), upsert(vectors=np.ones((2, 3), np.int8)), upsert((1,), ONES[:1], (b"{}",)),
    upsert(metadata=(b'{"a":1}', b"{}")), upsert(metadata=(b"{}", b'{"a":1}')), upsert(metadata=(b"{}{", b"}")),
    upsert((1, 2, 3), np.ones((3, 2), np.float32), (b"{}",) * 3),
    DeleteIds((1, 2)), DeleteIds((2, 1)), DeleteIds(("1", "2")), DeleteIds(("a", "bc")), DeleteIds(("ab", "c")),
    DeleteIds((1,)), DeleteIds(((1 << 63) - 1,)), DeleteIds((1, "a", 2)), DeleteIds((1, 2, "a")),
    DeleteWhere(parse("a == 1")), DeleteWhere(parse("a == '1'")), DeleteWhere(parse("a == 2")),
    DeleteWhere(parse("a in [1, 2]")), DeleteWhere(parse("not a == 1")), DeleteWhere(parse("true")),
    UpdateMetadata((1, 2), (b"{}", b"{}")), UpdateMetadata((1, 2), (b"{}", b"{}"), False),
    UpdateMetadata((1, 2), (b'{"a":1}', b"{}")), UpdateMetadata((1,), (b"{}",)),
]


def test_every_difference_of_content_is_one() -> None:
    found = [fingerprint(one) for one in DIFFERENT]
    same = [(DIFFERENT[a], DIFFERENT[b]) for a, b in itertools.combinations(range(len(found)), 2)
            if found[a] == found[b]]
    assert not same


def test_what_only_looks_different_is_none() -> None:
    strided = np.ones((2, 6), np.float32)[:, ::2]
    assert fingerprint(upsert(vectors=strided)) == fingerprint(upsert())
    for text, other in (("a == 1 and b < 2", (F.a == 1) & (F.b < 2)), ("a in [1, 2]", F.a.in_([1, 2]))):
        assert fingerprint(DeleteWhere(parse(text))) == fingerprint(DeleteWhere(vecdb.core.filters.to_node(other)))


def test_tokens_are_of_keys_that_may_be() -> None:
    assert token_of(b"", upsert()) is None
    token = token_of(b"k", upsert())
    assert token is not None
    assert (token.key, token.fingerprint) == (b"k", fingerprint(upsert()))
    with pytest.raises(LimitExceeded) as caught:
        token_of(b"x" * 65, upsert())
    assert caught.value.argument == "idempotency_key"


class Rest:
    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/v1/collections/docs/records"

    def __call__(self, verb: str, path: str, key: str, body: Any = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self._url + path, data, method=verb, headers={
            "content-type": "application/json", "idempotency-key": key})
        try:
            with urllib.request.urlopen(asked, timeout=30) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


def test_a_write_by_one_face_is_repeated_by_another(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    vectors = rng.normal(size=(5, 8)).astype(np.float32)
    numbers = [[float(one) for one in row] for row in vectors]  # the same numbers, exactly
    ids: list[Any] = [1, "two", 3, 4, "five"]
    objects = [{"n": place, "ü": [1.5, None, {"x": True}]} for place in range(5)]
    one = {"n": 1, "m": "x"}
    node = Node(tmp_path / "data", http_port=0)
    try:
        rest = Rest(node.addresses["http_port"])
        with vecdb.connect(node.url) as db:
            docs = db.create_collection("docs", dim=8, metric="cosine")
            first = docs.upsert(ids=ids, vectors=vectors, metadata=objects, idempotency_key="u")
            assert first.inserted == 5
            columns = {"ids": ids, "vectors": numbers, "metadata": objects}
            records = [{"id": identity, "vector": row, "metadata": said}
                       for identity, row, said in zip(ids, numbers, objects, strict=True)]
            for body in (columns, {"records": records}):
                status, said = rest("POST", "", "u", body)
                assert (status, said.get("inserted"), said.get("updated")) == (200, 5, 0), said
            status, said = rest("POST", "", "u", columns | {"ids": [9, *ids[1:]]})
            assert status == 400
            assert "idempotency_key" in said["error"]["message"]

            assert rest("PUT", "/77", "p", {"vector": numbers[0], "metadata": one})[1]["inserted"] == 1
            assert docs.upsert(ids=[77], vectors=vectors[:1], metadata=[one], idempotency_key="p").inserted == 1
            assert rest("PATCH", "", "m", {"ids": [1, 3], "metadata": {"x": 1}})[1]["updated"] == 2
            assert docs.update_metadata(ids=[1, 3], metadata={"x": 1}, idempotency_key="m").updated == 2
            assert docs.delete(ids=[77, 3], idempotency_key="d").deleted == 2
            assert rest("POST", ":delete", "d", {"ids": [77, 3]})[1]["deleted"] == 2
            assert docs.delete(filter="n == 4 and x != 2", idempotency_key="w").deleted == 1
            assert rest("POST", ":delete", "w", {"filter": {"n": 4, "x": {"$ne": 2}}})[1]["deleted"] == 1
            assert docs.delete(filter=(F.n == 4) & (F.x != 2), idempotency_key="w").deleted == 1
            assert rest("DELETE", "/1", "e")[1]["deleted"] == 1
            assert docs.delete(ids=[1], idempotency_key="e").deleted == 1
            with pytest.raises(InvalidArgument, match="idempotency_key"):
                docs.delete(ids=["1"], idempotency_key="e")
            assert docs.count() == 2
    finally:
        node.stop()
    with vecdb.connect(tmp_path / "data") as db:  # and in the directory itself
        docs = db.collection("docs")
        assert docs.upsert(ids=ids, vectors=vectors, metadata=objects, idempotency_key="u").inserted == 5
        assert docs.delete(filter="n == 4 and x != 2", idempotency_key="w").deleted == 1
        assert docs.count() == 2
