"""Bodies, paths and headers that nobody means well with: every one is refused in the one form, none is a fault."""

import base64
import random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.rpc.http.conftest import Face
from tests.unit.rpc.http.test_rest import QUERY, RECORDS, refused
from vecdb.core.errors import VecdbError
from vecdb.rpc.http import arrays, bodies
from vecdb.rpc.http.bodies import Slices

BODIES = {
    "nothing": b"",
    "blanks": b"  ",
    "truncated": b'{"vector": [1, 2',
    "no object": b"[1, 2]",
    "a number": b"17",
    "two values": b'{"vector": [1, 2]} {}',
    "invalid utf-8": b'{"filter": "\xff\xfe"}',
    "lone surrogate": b'{"filter": "\\ud800"}',
    "a byte order mark": b'\xef\xbb\xbf{"vector": [1, 2]}',
    "NaN": b'{"vector": [NaN, 1]}',
    "infinity": b'{"vector": [1e999, 1]}',
    "overflow of float32": b'{"vector": [1e300, 1]}',
    "a huge integer": b'{"vector": [1' + b"0" * 400 + b", 1]}",
    "deep": b'{"filter": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "deep filter": b'{"vector": [0, 0], "filter": ' + b'{"$not": ' * 500 + b'{"a": 1}' + b"}" * 500 + b"}",
    "deep expression": b'{"vector": [0, 0], "filter": "' + b"not " * 500 + b'a == 1"}',
    "null": b'{"vector": null}',
    "strings": b'{"vector": ["1", "2"]}',
    "booleans": b'{"vector": [true, 1]}',
    "nested": b'{"vector": [[1, 2]]}',
    "ragged": b'{"vectors": [[1, 2], [1]]}',
    "objects": b'{"vector": [{}, {}]}',
    "empty": b'{"vectors": []}',
    "empty row": b'{"vector": []}',
    "base64 of nothing": b'{"vector": {"base64": ""}}',
    "no base64": b'{"vector": {"base64": "*", "dtype": "float32"}}',
    "base64 cut off": b'{"vector": {"base64": "AAAA", "dtype": "float32"}}',
    "unknown dtype": b'{"vector": {"base64": "AAAAAAAAAAA=", "dtype": "complex64"}}',
    "NaN in base64": b'{"vector": {"base64": "AADAfwAAwH8=", "dtype": "float32"}}',
    "too large k": b'{"vector": [1, 2], "k": 10001}',
    "k as a fraction": b'{"vector": [1, 2], "k": 1.5}',
    "k as text": b'{"vector": [1, 2], "k": "10"}',
    "k beyond int64": b'{"vector": [1, 2], "k": 99999999999999999999999}',
    "include as text": b'{"vector": [1, 2], "include": "vector"}',
    "unknown include": b'{"vector": [1, 2], "include": ["all"]}',
    "unknown member": b'{"vector": [1, 2], "__proto__": {}}',
    "an unknown member of odd letters": b'{"vector": [1, 2], "\\u0000\\u202e": 1}',
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_of_queries(face: Face, name: str) -> None:
    face.docs()
    refused(face.ask("POST", QUERY, content=BODIES[name]), 400, "INVALID_ARGUMENT")


@pytest.mark.parametrize("body", [
    {"ids": [1], "vectors": [[0, 0]], "metadata": [{"a": float(2**70)}, {}]},
    {"ids": [1], "vectors": [[0, 0]], "metadata": {"a": 1}},
    {"ids": [1], "vectors": [[0, 0]], "metadata": ["text"]},
    {"ids": [1], "vectors": [[0, 0]], "metadata": [{"t": "x" * 70_000}]},
    {"ids": [1, 2], "vectors": [[0, 0]]}, {"ids": [], "vectors": []}, {"ids": 1, "vectors": [[0, 0]]},
    {"ids": [-1], "vectors": [[0, 0]]}, {"ids": [1.0], "vectors": [[0, 0]]}, {"ids": [True], "vectors": [[0, 0]]},
    {"ids": [2**63], "vectors": [[0, 0]]}, {"ids": [""], "vectors": [[0, 0]]},
    {"ids": ["x" * 129], "vectors": [[0, 0]]},
    {"ids": [None], "vectors": [[0, 0]]}, {"ids": [[1]], "vectors": [[0, 0]]}, {"ids": [1], "vectors": "0 0"},
    {"records": []}, {"records": [1]}, {"records": [{"id": 1}]}, {"records": [{"id": 1, "vector": [0]}]},
    {"records": [{"id": 1, "vector": [0, 0], "more": 1}]}, {"records": [{"id": 1, "vector": "00"}]},
    {"records": [{"id": 1, "vector": [0, 0]}], "ids": [1]}, {"records": {"id": 1}}])
def test_upserts_change_nothing_when_refused(face: Face, body: Any) -> None:
    face.docs()
    before = face.node.backend.state()
    refused(face.ask("POST", RECORDS, body), 400, "INVALID_ARGUMENT")
    assert face.node.backend.state() == before


def test_of_equal_members_the_last_counts(face: Face) -> None:
    face.docs()
    reply = face.ask("POST", QUERY, content=b'{"k": 0, "vector": [0, 0], "k": 1}')
    assert len(reply.json()["results"][0]["matches"]) == 1


@pytest.mark.parametrize(("headers", "http"), [
    ({"content-type": "text/plain"}, 415), ({"content-type": "application/json; charset=utf-16"}, 415),
    ({"content-type": "application/x-www-form-urlencoded"}, 415), ({"content-type": ""}, 415),
    ({"content-encoding": "gzip"}, 415), ({"content-type": "application/json;charset=UTF-8"}, 200),
    ({"content-type": "APPLICATION/JSON"}, 200), ({"x-timeout-ms": "1\t"}, 400), ({"content-length": "1x"}, 400)])
def test_forms(face: Face, headers: dict[str, str], http: int) -> None:
    face.docs()
    response = face.ask("POST", QUERY, content=b'{"vector": [0, 0]}', headers=headers)
    assert response.status_code == http, response.text
    if http != 200:
        refused(response, http, "INVALID_ARGUMENT")


def test_bodies_above_the_limit_are_not_read(face: Face) -> None:
    face.docs()
    face.message_bytes = 1000
    error = refused(face.ask("POST", QUERY, content=b" " * 1001), 413, "INVALID_ARGUMENT")
    assert error["fields"]["limit"] == 1000
    face.message_bytes = 100_000
    response = face.ask("POST", QUERY, content=b" " * 100_001)
    refused(response, 413, "INVALID_ARGUMENT")
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize(("verb", "path", "http"), [
    ("GET", "/v1/collections/..%2F..%2Fetc", 400), ("GET", "/v1/collections/%2e%2e", 400),
    ("GET", "/v1/collections/%00", 400), ("GET", "/v1/collections/%ff%fe", 400), ("GET", "/v1/collections/-x", 400),
    ("GET", "/v1/collections/" + "x" * 129, 400), ("GET", "/v1/collections/a%3Aquery", 400),
    ("GET", "/v1/collections/docs:query", 405), ("PUT", "/v1/collections", 405), ("GET", "/v1/collections/docs:x", 404),
    ("GET", "/v1", 404), ("GET", "//v1/collections", 404), ("GET", "/v1/collections/", 404), ("GET", "/metrics/", 404),
    ("TRACE", "/v1/collections", 405), ("OPTIONS", "/v1/collections/docs", 405),
    ("GET", "/v1/collections/docs/records/", 404), ("GET", "/v1/collections/docs/records/" + "x" * 129, 400),
    ("GET", "/v1/collections?x=1", 400), ("GET", "/v1/collections?x", 400),
    ("GET", "/v1/collections?timeout_ms=%ff", 400),
    ("GET", "/v1/collections?timeout_ms=5&timeout_ms=6", 400), ("GET", "/v1/collections?" + "x" * 5000, 400),
    ("GET", "/v1/collections/a%0d%0ax-evil%3a%201", 400), ("GET", "/v1/jobs?collection=a/b", 400)])
def test_paths(face: Face, verb: str, path: str, http: int) -> None:
    face.docs()
    response = face.ask(verb, path)
    refused(response, http, {404: "NOT_FOUND", 405: "UNIMPLEMENTED"}.get(http, "INVALID_ARGUMENT"))
    assert "x-evil" not in response.headers
    if http == 405:
        assert response.headers["allow"]


def test_a_body_where_none_belongs(face: Face) -> None:
    refused(face.ask("GET", "/v1/collections", content=b"{}"), 400, "INVALID_ARGUMENT", "body")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2**53, 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")) | st.sampled_from(['"', "\\", '\\"', "[", "]}", "{,:", "\\\\\""]),
    lambda inner: st.lists(inner, max_size=6)
    | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=6), max_leaves=40)


_PIECES = [b"", b'"', b"\\", b"[", b"]", b"}", b",", b":", b"0", b"[]"]


def _whole(value: dict[str, Any]) -> dict[str, Any]:
    return {name: [item for part in one for item in part] if isinstance(one, Slices) else one
            for name, one in value.items()}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(value=st.dictionaries(st.text(st.characters(codec="utf-8")), _JSON, max_size=6), indent=st.booleans(),
       chunk=st.integers(1, 40), long=st.integers(1, 30))
def test_slices_mean_what_the_whole_means(value: dict[str, Any], indent: bool, chunk: int, long: int) -> None:
    body = orjson.dumps(value, option=orjson.OPT_INDENT_2 if indent else 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "LONG_BYTES", long)
        patch.setattr(bodies, "_CHUNK", chunk)
        assert _whole(bodies.read(body + b"  ")) == value


@settings(max_examples=300, deadline=None, derandomize=True)
@given(value=st.dictionaries(st.sampled_from(["ids", "vectors", "metadata", "k"]), _JSON, max_size=4),
       seed=st.integers(0, 2**32), chunk=st.integers(1, 40), long=st.integers(1, 30))
def test_damaged_bodies_are_refused_as_a_whole_would_be(value: dict[str, Any], seed: int, chunk: int,
                                                        long: int) -> None:
    """Bytes changed, dropped and put in: whatever orjson refuses whole is refused in slices, and nothing else is."""
    body = bytearray(orjson.dumps(value))
    draw = random.Random(seed)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(body)) if body else 0
        body[place:place + draw.randint(0, 2)] = draw.choice(_PIECES)
    damaged = bytes(body)
    try:
        whole: Any = orjson.loads(damaged)
        whole = whole if isinstance(whole, dict) else None
    except ValueError:
        whole = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "LONG_BYTES", long)
        patch.setattr(bodies, "_CHUNK", chunk)
        try:
            sliced: Any = _whole(bodies.read(damaged))
        except VecdbError:
            sliced = None
    assert sliced == whole, damaged


@pytest.mark.parametrize("text", [
    "", "A", "AA", "AA=", "AA==", "AAA=", "AAAA", "AAAAAA==", "AA==AAAA", "A===", "AA AA", "AAAA\n", "AA=A", "====",
    "AA-_", "AAAé", "AAAAAAA=", "QUJD" * 5, "QUJD" * 5 + "RA=="])
def test_base64_in_runs_is_base64(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    def decoded(read: Any) -> Any:
        try:
            return read(text)
        except ValueError:
            return None

    monkeypatch.setattr(arrays, "_RUN_CHARS", 4)
    assert decoded(arrays._unpacked) == decoded(lambda one: base64.b64decode(one, validate=True))


def test_what_cannot_be_cut_is_bounded(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    face.docs()
    monkeypatch.setattr(bodies, "MAX_MARKS", 50_000)
    body = b'{"vector": [0, 0], "filter": {"a": {"$in": [' + b"[]," * 100_000 + b"[]]}}}"
    error = refused(face.ask("POST", QUERY, content=body), 400, "INVALID_ARGUMENT", "body")
    assert error["fields"]["limit"] == 50_000
