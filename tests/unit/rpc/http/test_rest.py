"""What the REST API does, and how it says no."""

import asyncio
import base64
from typing import Any

import numpy as np
import orjson
import pytest

from tests.unit.rpc.http.conftest import PRINCIPALS, Face
from vecdb.core.errors import OutcomeUnknown, Overloaded, StorageFull, Unavailable
from vecdb.core.filters import from_mapping, to_text
from vecdb.core.limits import MAX_BATCH_RECORDS
from vecdb.ports.observer import Refusal
from vecdb.rpc.http import edge
from vecdb.rpc.http.models import MAX_RESULTS
from vecdb.v1 import types_pb2 as pb
from vecdb.wire.filters import filter_from_wire

RECORDS = "/v1/collections/docs/records"
QUERY = "/v1/collections/docs:query"


def refused(response: Any, http: int, code: str, argument: str | None = None) -> dict[str, Any]:
    """The error in its one form."""
    assert response.status_code == http, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"code", "kind", "message", "retryable", "fields", "request_id"}
    assert error["code"] == code
    if argument is not None:
        assert error["fields"]["argument"] == argument, error
    return error


def test_a_collection_from_making_to_dropping(face: Face) -> None:
    made = face.ask("POST", "/v1/collections", {"name": "docs", "dim": 3, "index": {"kind": "hnsw", "m": 32}})
    assert made.status_code == 201
    assert made.headers["location"] == "/v1/collections/docs"
    assert made.json()["index"]["m"] == 32
    refused(face.ask("POST", "/v1/collections", {"name": "docs", "dim": 3}), 409, "ALREADY_EXISTS")
    assert face.ask("GET", "/v1/collections").json() == {"collections": ["docs"]}
    assert face.ask("GET", "/v1/collections/docs/schema").json() == made.json()
    assert face.ask("GET", "/v1/collections/docs").json()["records"] == 0
    assert face.ask("POST", "/v1/collections/docs:verify").json()["equal"] is True
    assert face.ask("POST", "/v1/collections/docs:optimize").json()["name"] == "docs"
    for verb in ("verify", "optimize"):
        assert face.ask("POST", f"/v1/collections/docs:{verb}", {}).status_code == 200
        assert face.ask("POST", f"/v1/collections/docs:{verb}", headers={"content-type": "application/json"}
                        ).status_code == 200
        refused(face.ask("POST", f"/v1/collections/docs:{verb}", {"wait": False}), 400, "INVALID_ARGUMENT", "wait")
        refused(face.ask("POST", f"/v1/collections/docs:{verb}", content=b"[]"), 400, "INVALID_ARGUMENT", "body")
    assert face.ask("DELETE", "/v1/collections/docs").status_code == 204
    refused(face.ask("DELETE", "/v1/collections/docs"), 404, "NOT_FOUND")
    assert [(line["method"], line["outcome"], line["collection"]) for line in face.audit.lines] == [
        ("Collections/Create", "OK", "docs"), ("Collections/Create", "ALREADY_EXISTS", "docs"),
        ("Collections/Drop", "OK", "docs"), ("Collections/Drop", "NOT_FOUND", "docs")]


def test_integer_and_string_ids_are_told_apart_in_paths(face: Face) -> None:
    face.docs()
    assert face.ask("GET", f"{RECORDS}/7").json() == {"id": 7, "metadata": {"year": 2020}, "vector": [0.0, 0.0]}
    assert face.ask("GET", f"{RECORDS}/7?id_type=string&include=metadata").json() == {
        "id": "7", "metadata": {"year": 2021}}
    assert face.ask("GET", f"{RECORDS}/a%2Fb?include=").json() == {"id": "a/b"}
    assert face.ask("GET", f"{RECORDS}/a/b?include=").json() == {"id": "a/b"}
    refused(face.ask("GET", f"{RECORDS}/a?id_type=integer"), 400, "INVALID_ARGUMENT", "id")
    assert refused(face.ask("GET", f"{RECORDS}/07"), 404, "NOT_FOUND")["fields"]["id"] == "07"
    for text in ("snowman ☃", "a:b", "a b?c#d", "..", "x" * 128, "%"):
        path = f"{RECORDS}/{''.join(f'%{byte:02X}' for byte in text.encode())}?id_type=string"
        assert face.ask("PUT", path, {"vector": [1, 1], "metadata": {"t": text}}).json()["inserted"] == 1
        assert face.ask("GET", path).json() == {"id": text, "metadata": {"t": text}, "vector": [1.0, 1.0]}
        assert face.ask("DELETE", path).json()["deleted"] == 1
        assert face.ask("DELETE", path).json()["missing"] == 1


def test_records_as_columns_and_one_by_one_in_lists_and_base64(face: Face) -> None:
    face.docs()
    matrix = np.arange(6, dtype="<f4").reshape(3, 2)
    packed = {"base64": base64.b64encode(matrix.tobytes()).decode(), "dtype": "float32"}
    assert face.ask("POST", RECORDS, {"ids": [1, 2, 3], "vectors": packed}).json()["inserted"] == 3
    one = {"base64": base64.b64encode(matrix[2].astype("<f8").tobytes()).decode(), "dtype": "float64"}
    result = face.ask("PUT", RECORDS, {"records": [{"id": 3, "vector": [9, 9]}, {"id": 4, "vector": one},
                                                   {"id": 3, "vector": [8, 8], "metadata": {"last": True}}]})
    assert (result.json()["inserted"], result.json()["updated"]) == (1, 1)
    fetched = face.ask("POST", f"{RECORDS}:fetch", {"ids": [2, 3, 4, 99], "encoding": "base64"}).json()["records"]
    vectors = [np.frombuffer(base64.b64decode(record["vector"]["base64"]), record["vector"]["dtype"]).tolist()
               for record in fetched]
    assert vectors == [[2.0, 3.0], [8.0, 8.0], [4.0, 5.0]]
    assert fetched[1]["metadata"] == {"last": True}


def test_long_bodies_are_read_in_slices_and_mean_the_same(face: Face) -> None:
    face.docs(dim=64)
    rng = np.random.default_rng(5)
    matrix = rng.normal(size=(1500, 64)).astype(np.float32)
    extra = [{"n": i, "text": 'a "quoted" \\ [bracket], {brace}'} for i in range(1500)]
    body = {"ids": list(range(1500)), "vectors": matrix, "metadata": extra}
    assert face.ask("POST", RECORDS, body).json()["inserted"] == 1500
    again = {"records": [{"id": i, "vector": row.tolist(), "metadata": one}
                         for i, (row, one) in enumerate(zip(matrix, extra, strict=True))]}
    assert face.ask("POST", RECORDS, again).json()["updated"] == 1500
    got = face.ask("POST", f"{RECORDS}:fetch", {"ids": list(range(1500))}).json()["records"]
    assert np.array_equal(np.array([record["vector"] for record in got], np.float32), matrix)
    assert [record["metadata"] for record in got] == extra
    answered = face.ask("POST", QUERY, {"vectors": matrix, "k": 1}).json()["results"]
    assert [one["matches"][0]["id"] for one in answered] == list(range(1500))
    bad = matrix.tolist()
    bad[1400] = bad[1400][:-1]
    error = refused(face.ask("POST", RECORDS, {**body, "vectors": bad}), 400, "INVALID_ARGUMENT")
    assert error["kind"] == "DimensionMismatch"
    assert error["fields"]["argument"] == "vectors[1400]"


def test_queries(face: Face) -> None:
    face.docs()
    reply = face.ask("POST", QUERY, {"vector": [0, 0], "k": 2, "include": ["metadata", "vector"], "explain": True,
                                     "profile": True, "within": 5.5}).json()
    assert reply["results"][0]["matches"] == [
        {"id": 7, "distance": 0.0, "score": 0.0, "metadata": {"year": 2020}, "vector": [0.0, 0.0]},
        {"id": "7", "distance": 5.0, "score": -5.0, "metadata": {"year": 2021}, "vector": [3.0, 4.0]}]
    assert reply["plan"]["strategy"] == "exact"
    assert reply["cost"]["batched"] == 1
    for where in ("year >= 2021", {"year": {"$gte": 2021}}):
        found = face.ask("POST", QUERY, {"vectors": [[0, 0], [1, 1]], "k": 5, "filter": where}).json()["results"]
        assert [[match["id"] for match in one["matches"]] for one in found] == [["7"], ["7"]]
    refused(face.ask("POST", QUERY, {"vector": [0, 0], "filter": "year >"}), 400, "INVALID_ARGUMENT", "filter")
    refused(face.ask("POST", QUERY, {"vector": [0, 0, 0]}), 400, "INVALID_ARGUMENT", "vector")
    refused(face.ask("POST", QUERY, {}), 400, "INVALID_ARGUMENT", "vector")
    refused(face.ask("POST", QUERY, {"vector": [0, 0], "vectors": [[0, 0]]}), 400, "INVALID_ARGUMENT", "vector")
    error = refused(face.ask("POST", QUERY, {"vector": [0, 0], "filtre": "x"}), 400, "INVALID_ARGUMENT", "filtre")
    assert "did you mean 'filter'" in error["message"]
    many = [[0, 0]] * (MAX_RESULTS // 10_000 + 1)
    refused(face.ask("POST", QUERY, {"vectors": many, "k": 10_000}), 400, "INVALID_ARGUMENT", "k")


def test_equal_filters_are_one_object_that_queries_may_share_a_batch(face: Face, monkeypatch: pytest.MonkeyPatch
                                                                     ) -> None:
    face.docs()
    seen: list[Any] = []

    async def query(name: str, request: Any, call: Any) -> Any:
        seen.append(request.filter)
        raise Overloaded("enough", retry_after_s=1.0)

    monkeypatch.setattr(face.node, "query", query)
    text, mapping = "year >= 2020 and year != 2030", {"year": {"$gte": 2020}, "lang": {"$in": ["en", "de"]}}
    turned = {"lang": {"$in": ["en", "de"]}, "year": {"$gte": 2020}}
    for where in (text, text, mapping, mapping, turned, {"year": {"$gte": 2020.0}}, {"year": {"$gte": 2021}}):
        face.ask("POST", QUERY, {"vector": [0, 0], "filter": where})
    assert seen[0] is seen[1] is filter_from_wire(pb.Filter(expression=text))
    assert seen[2] is seen[3] is seen[4]
    assert len({id(one) for one in seen}) == 4
    assert to_text(seen[2]) == to_text(from_mapping(mapping))


def test_cosine_scores_are_similarities(face: Face) -> None:
    face.docs(dim=3, metric="cosine")
    face.ask("POST", RECORDS, {"ids": [1, 2], "vectors": [[2, 0, 0], [0, 2, 0]]})
    found = face.ask("POST", QUERY, {"vector": [3, 0, 0]}).json()["results"][0]["matches"]
    assert found == [{"id": 1, "distance": 0.0, "score": 1.0}, {"id": 2, "distance": 1.0, "score": 0.0}]


def test_scan_goes_through_all_records(face: Face) -> None:
    face.docs()
    after, seen = 0, []
    while after is not None:
        page = face.ask("POST", f"{RECORDS}:scan", {"limit": 2, "after": after, "include": ["vector"]}).json()
        seen += [record["id"] for record in page["records"]]
        after = page["cursor"]
    assert seen == [7, "7", "a/b"]
    assert face.ask("POST", f"{RECORDS}:count").json() == {"count": 3}
    assert face.ask("POST", f"{RECORDS}:count", {"filter": "year == 2020"}).json() == {"count": 1}


def test_metadata_is_merged_or_replaced(face: Face) -> None:
    face.docs()
    assert face.ask("PATCH", RECORDS, {"ids": [7, "7", 7, 99], "metadata": {"a": 1}}).json() == {
        "inserted": 0, "updated": 2, "deleted": 0, "missing": 1, "log_index": 2, "shard": 0}
    assert face.ask("PATCH", RECORDS, {"ids": [7, "7"], "metadata": [{"year": None}, {"year": 1}],
                                       "merge": True}).json()["updated"] == 2
    assert face.ask("GET", f"{RECORDS}/7?include=metadata").json()["metadata"] == {"a": 1}
    face.ask("PATCH", RECORDS, {"ids": [7], "metadata": {}, "merge": False})
    assert face.ask("GET", f"{RECORDS}/7?include=metadata").json()["metadata"] == {}
    refused(face.ask("PATCH", RECORDS, {"ids": [7, 7], "metadata": [{}, {}]}), 400, "INVALID_ARGUMENT", "ids[1]")
    refused(face.ask("PATCH", RECORDS, {"ids": [7], "metadata": [{}, {}]}), 400, "INVALID_ARGUMENT", "metadata")


def test_deletes_need_to_say_what(face: Face) -> None:
    face.docs()
    for body in ({}, {"ids": [7], "filter": "true"}, {"filter": {}}, {"filter": None}, {"ids": []}):
        refused(face.ask("POST", f"{RECORDS}:delete", body), 400, "INVALID_ARGUMENT")
    assert face.ask("POST", f"{RECORDS}:delete", {"ids": [7, 7, 99]}).json()["missing"] == 1
    assert face.ask("POST", f"{RECORDS}:delete", {"filter": "true"}).json()["deleted"] == 2


def test_a_write_with_a_key_happens_once(face: Face) -> None:
    face.docs()
    body = {"ids": [50], "vectors": [[1, 2]]}
    first = face.ask("POST", RECORDS, body, headers={"idempotency-key": "k1"}).json()
    assert face.ask("POST", RECORDS, body, headers={"idempotency-key": "k1"}).json() == first
    assert first["inserted"] == 1
    other = face.ask("POST", RECORDS, {**body, "ids": [51]}, headers={"idempotency-key": "k1"})
    refused(other, 400, "INVALID_ARGUMENT", "idempotency_key")
    for bad in ("", "x" * 65, "a b"):
        refused(face.ask("POST", RECORDS, body, headers={"idempotency-key": bad}), 400, "INVALID_ARGUMENT",
                "idempotency-key")


def test_optimize_in_the_background(face: Face) -> None:
    face.docs()

    async def run() -> None:
        app = face.app()
        gate = face.node.gate["optimize"] = asyncio.Event()
        for _ in range(2):
            accepted = await face.asked(app, "POST", "/v1/collections/docs:optimize?wait=false")
            assert accepted.status_code == 202
            assert accepted.json()["jobs"] == "/v1/jobs?collection=docs"
        await asyncio.sleep(0.01)
        assert [method for method, _, _ in face.node.calls].count("optimize") == 1
        gate.set()
        await app.background.stop()

    asyncio.run(run())
    refused(face.ask("POST", "/v1/collections/none:optimize?wait=false"), 404, "NOT_FOUND")
    refused(face.ask("POST", "/v1/collections/docs:optimize?wait=1"), 400, "INVALID_ARGUMENT", "wait")


def test_keys_jobs_and_the_server(face: Face) -> None:
    made = face.ask("POST", "/v1/keys", {"name": "search", "grants": [{"role": "read", "collections": ["docs*"]}]})
    assert made.status_code == 201
    key = made.json()["key"]
    assert key["grants"] == [{"role": "read", "collections": ["docs*"]}]
    assert face.ask("GET", "/v1/keys").json() == {"keys": [key]}
    assert face.ask("POST", f"/v1/keys/{key['id']}:rotate", {"overlap_s": 5}).json()["secret"] != made.json()["secret"]
    assert face.ask("POST", f"/v1/keys/{key['id']}:rotate").status_code == 200
    assert face.ask("DELETE", f"/v1/keys/{key['id']}").status_code == 204
    refused(face.ask("DELETE", "/v1/keys/zzzzzzzzzzzz"), 404, "NOT_FOUND")
    assert "secret" not in orjson.dumps([line["arguments"] for line in face.audit.lines]).decode()
    assert [(line["method"], line["arguments"].get("id")) for line in face.audit.lines] == [
        ("Admin/CreateKey", key["id"]), ("Admin/ListKeys", None), ("Admin/RotateKey", key["id"]),
        ("Admin/RotateKey", key["id"]), ("Admin/RevokeKey", key["id"]), ("Admin/RevokeKey", "zzzzzzzzzzzz")]
    assert "key" not in face.audit.lines[2]["arguments"]
    face.node.job_list.append({"collection": "docs", "kind": "seal", "state": "running", "done": 1, "total": None})
    assert face.ask("GET", "/v1/jobs?collection=docs").json()["jobs"] == [
        {"collection": "docs", "kind": "seal", "state": "running", "stage": "", "done": 1, "total": 0, "error": ""}]
    assert face.ask("GET", "/v1/jobs?collection=other").json() == {"jobs": []}
    assert face.ask("GET", "/v1/server").json()["version"] == "1.2.3"


def test_roles(face: Face) -> None:
    face.docs()
    face.ask("POST", "/v1/collections", {"name": "other", "dim": 1})
    face.door.closed = True

    def by(who: str, *args: Any) -> Any:
        return face.ask(*args, headers={"authorization": f"Bearer {who}"})

    nobody = face.ask("GET", "/v1/collections")
    refused(nobody, 401, "UNAUTHENTICATED")
    refused(face.ask("GET", "/metrics"), 401, "UNAUTHENTICATED")
    assert face.watch.turned_away == [Refusal.AUTH] * 2
    assert nobody.headers["www-authenticate"].startswith("Bearer")
    assert by("reader", "GET", "/v1/collections").json() == {"collections": ["docs"]}
    assert by("reader", "POST", QUERY, {"vector": [0, 0]}).status_code == 200
    for args in (("POST", RECORDS, {"ids": [1], "vectors": [[0, 0]]}), ("GET", "/v1/collections/other"),
                 ("GET", "/v1/collections/absent"), ("POST", "/v1/collections", {"name": "new", "dim": 1}),
                 ("DELETE", "/v1/collections/docs"), ("GET", "/v1/keys"), ("GET", "/metrics"),
                 ("PUT", RECORDS, {"ids": [1], "vectors": [[0, 0]]}), ("DELETE", f"{RECORDS}/1"),
                 ("PUT", f"{RECORDS}/1", {"vector": [0, 0]}), ("POST", f"{RECORDS}:delete", {"ids": [1]}),
                 ("PATCH", RECORDS, {"ids": [1], "metadata": {}}), ("POST", "/v1/collections/docs:optimize"),
                 ("POST", "/v1/keys", {"name": "mine", "grants": [{"role": "admin"}]}),
                 ("POST", "/v1/keys/abcdefgh2345:rotate", {}), ("DELETE", "/v1/keys/abcdefgh2345"),
                 ("GET", "/v1/jobs?collection=other")):
        refused(by("reader", *args), 403, "PERMISSION_DENIED")
    assert face.watch.turned_away[2:] == [Refusal.PERMISSION] * 17
    assert by("writer", "POST", RECORDS, {"ids": [1], "vectors": [[0, 0]]}).status_code == 200
    refused(by("writer", "DELETE", "/v1/collections/docs"), 403, "PERMISSION_DENIED")
    assert by("admin", "DELETE", "/v1/collections/docs").status_code == 204
    assert by("admin", "GET", "/metrics").status_code == 200
    assert by("reader", "GET", "/v1/server").json()["details"] == {}
    assert face.audit.lines[-1]["principal"] == PRINCIPALS["admin"]
    assert face.ask("GET", "/healthz").status_code == 200


def test_health_and_pages(face: Face) -> None:
    assert face.ask("GET", "/readyz").json()["ready"] is True
    face.reasons.append("warming up")
    response = face.ask("GET", "/readyz")
    assert response.status_code == 503
    assert response.json()["reasons"] == ["warming up"]
    assert response.json()["status"] == "unavailable"
    for path in ("/healthz", "/livez"):
        assert face.ask("GET", path).json()["status"] == "ok"
    head = face.ask("HEAD", "/healthz")
    assert (head.status_code, head.content) == (200, b"")
    assert face.ask("GET", "/metrics").headers["content-type"].startswith("text/plain")
    openmetrics = face.ask("GET", "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert openmetrics.content == b"# EOF\n"
    page = face.ask("GET", "/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert b"//" not in page.content.replace(b"</", b"")
    refused(face.ask("POST", "/healthz"), 405, "UNIMPLEMENTED")


def test_request_ids_come_back(face: Face) -> None:
    assert face.ask("GET", "/v1/collections", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    error = refused(face.ask("GET", "/v1/collections/none", headers={"x-request-id": "abc-2"}), 404, "NOT_FOUND")
    assert error["request_id"] == "abc-2"
    replaced = face.ask("GET", "/v1/collections", headers={"x-request-id": "a b"}).headers["x-request-id"]
    assert " " not in replaced
    assert replaced


@pytest.mark.parametrize(("error", "http", "retry"), [
    (Overloaded("full", retry_after_s=2.2), 429, "3"), (Unavailable("stopping"), 503, "1"),
    (StorageFull("no room"), 507, None), (OutcomeUnknown("who knows"), 500, None)])
def test_errors_of_the_node(face: Face, error: Exception, http: int, retry: str | None) -> None:
    face.docs()
    face.node.fail["count"] = error
    response = face.ask("POST", f"{RECORDS}:count")
    refused(response, http, error.code)  # type: ignore[attr-defined]
    assert response.headers.get("retry-after") == retry
    assert face.watch.ended[-1] == ("Records/Count", "docs", error.code)  # type: ignore[attr-defined]


def test_a_fault_says_nothing_of_the_inside(face: Face) -> None:
    face.docs()
    face.node.fail["count"] = RuntimeError("the secret of /srv/data")
    error = refused(face.ask("POST", f"{RECORDS}:count"), 500, "INTERNAL")
    assert "secret" not in str(error)
    assert [str(fault) for fault in face.faults] == ["the secret of /srv/data"]
    face.faults.clear()


def test_deadlines_end_the_work(face: Face) -> None:
    face.docs()
    face.node.gate["count"] = asyncio.Event()
    for path, headers in ((f"{RECORDS}:count", {"x-timeout-ms": "30"}), (f"{RECORDS}:count?timeout_ms=30", {}),
                          (f"{RECORDS}:count?timeout_ms=30", {"x-timeout-ms": "60000"})):
        refused(face.ask("POST", path, headers=headers), 504, "DEADLINE_EXCEEDED")
        assert face.node.calls[-1][2].stop[0] == 1
    for bad in ("0", "-5", "1e3", "abc", "99999999999"):
        refused(face.ask("GET", f"/v1/collections?timeout_ms={bad}"), 400, "INVALID_ARGUMENT", "timeout_ms")


def test_what_does_not_end_by_itself_is_given_up(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    face.docs()
    monkeypatch.setattr(edge, "BACKSTOP_S", 0.05)

    async def stubborn(*args: Any) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(face.node, "upsert", stubborn)
    monkeypatch.setattr(face.node, "count", stubborn)
    brief = {"x-timeout-ms": "20"}
    refused(face.ask("POST", f"{RECORDS}:count", headers=brief), 504, "DEADLINE_EXCEEDED")
    refused(face.ask("POST", RECORDS, {"ids": [1], "vectors": [[0, 0]]}, headers=brief), 500, "UNKNOWN")


def test_a_client_that_goes_away_ends_its_work(face: Face) -> None:
    face.docs()
    face.node.gate["count"] = asyncio.Event()
    sent: list[Any] = []

    async def run() -> None:
        messages = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            while not any(method == "count" for method, _, _ in face.node.calls):
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        path = f"{RECORDS}:count"
        await face.app()({"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": [],
                          "query_string": b"", "client": ("::1", 5)}, receive, send)

    asyncio.run(run())
    assert face.node.calls[-1][2].stop[0] == 2
    assert face.watch.ended[-1] == ("Records/Count", "docs", "CANCELLED")
    assert sent[0]["status"] == 499
    assert face.door.peers[-1] == ("ipv6:[::1]:5", "")


def test_too_many_calls_at_once(face: Face) -> None:
    face.docs()
    face.concurrent_calls = 2
    face.node.gate["count"] = asyncio.Event()

    async def run() -> None:
        app = face.app()
        held = [asyncio.create_task(face.asked(app, "POST", f"{RECORDS}:count")) for _ in range(2)]
        while app.running < 2:
            await asyncio.sleep(0.001)
        response = await face.asked(app, "POST", f"{RECORDS}:count")
        assert refused(response, 503, "RESOURCE_EXHAUSTED")["retryable"] is True
        assert response.headers["retry-after"] == "1"
        assert (await face.asked(app, "GET", "/readyz")).status_code == 200
        face.node.gate["count"].set()
        assert [(await one).status_code for one in held] == [200, 200]

    asyncio.run(run())
    assert Refusal.CALLS in face.watch.turned_away


def test_rates_and_the_budget_of_bytes(face: Face) -> None:
    face.docs()
    face.door.most = 100
    refused(face.ask("POST", RECORDS, {"ids": [1], "vectors": [[0.123456789] * 2], "metadata": [{"t": "x" * 100}]}),
            429, "RESOURCE_EXHAUSTED")
    face.door.full = True
    response = face.ask("GET", "/v1/collections")
    refused(response, 429, "RESOURCE_EXHAUSTED")
    assert response.headers["retry-after"] == "2"
    assert face.watch.turned_away == [Refusal.INFLIGHT_BYTES, Refusal.RATE]


def test_too_many_records(face: Face) -> None:
    face.docs(dim=1, metric="dot")
    count = MAX_BATCH_RECORDS + 1
    body = {"ids": list(range(count)), "vectors": np.zeros((count, 1), np.float32)}
    refused(face.ask("POST", RECORDS, body), 400, "INVALID_ARGUMENT", "ids")
    refused(face.ask("POST", f"{RECORDS}:fetch", {"ids": list(range(10_001))}), 400, "INVALID_ARGUMENT", "ids")
