"""What a read over REST must have seen."""

import pytest

from tests.unit.rpc.http.conftest import Face
from tests.unit.rpc.http.test_rest import QUERY, RECORDS, refused
from vecdb.core.calls import Call, Consistency
from vecdb.core.records import WriteResult

READS = [("POST", QUERY, {"vector": [0, 0]}, "query"), ("POST", f"{RECORDS}:fetch", {"ids": [7]}, "fetch"),
         ("POST", f"{RECORDS}:scan", {}, "scan"), ("POST", f"{RECORDS}:count", {}, "count"),
         ("POST", "/v1/collections/docs:optimize", {}, "optimize")]


def last(face: Face, method: str) -> Call:
    return [call for name, _, call in face.node.calls if name == method][-1]


@pytest.mark.parametrize(("verb", "path", "body", "method"), READS)
def test_bodies_say_what_must_have_been_seen(face: Face, verb: str, path: str, body: dict, method: str) -> None:
    face.docs()
    assert face.ask(verb, path, body).status_code == 200
    assert (last(face, method).consistency, last(face, method).session) == (Consistency.EVENTUAL, ())
    for level in Consistency:
        assert face.ask(verb, path, {**body, "consistency": level.value}).status_code == 200
        assert last(face, method).consistency is level
    session = [{"shard": 3, "log_index": 17}, {"shard": 4, "log_index": 2}, {"shard": 3, "log_index": 9}]
    assert face.ask(verb, path, {**body, "session": session}).status_code == 200
    assert (last(face, method).consistency, last(face, method).session) == (Consistency.SESSION, ((3, 17), (4, 2)))
    assert face.ask(verb, path, {**body, "session": session, "consistency": "linearizable"}).status_code == 200
    assert last(face, method).consistency is Consistency.LINEARIZABLE
    for wrong, argument in (({"consistency": "strong"}, "consistency"), ({"session": "3:17"}, "session"),
                            ({"session": [{"shard": 3}]}, "session[0].log_index"),
                            ({"session": [{"shard": -1, "log_index": 1}]}, "session[0].shard"),
                            ({"session": [{"shard": "3", "log_index": 1}]}, "session[0].shard"),
                            ({"session": [session[0]] * 5_000}, "session")):
        refused(face.ask(verb, path, {**body, **wrong}), 400, "INVALID_ARGUMENT", argument)


@pytest.mark.parametrize(("one", "method"), [(f"{RECORDS}/7", "fetch"), ("/v1/collections/docs", "describe")])
def test_parameters_say_it_where_there_is_no_body(face: Face, one: str, method: str) -> None:
    face.docs()
    assert face.ask("GET", f"{one}?consistency=linearizable").status_code == 200
    assert last(face, method).consistency is Consistency.LINEARIZABLE
    assert face.ask("GET", f"{one}?session=3:17,4:2").status_code == 200
    assert (last(face, method).consistency, last(face, method).session) == (Consistency.SESSION, ((3, 17), (4, 2)))
    assert face.ask("GET", one).status_code == 200
    assert last(face, method).consistency is Consistency.EVENTUAL
    for wrong, argument in (("consistency=all", "consistency"), ("session=3", "session"), ("session=3:x", "session"),
                            ("session=", "session"), ("session=3:1,", "session")):
        refused(face.ask("GET", f"{one}?{wrong}"), 400, "INVALID_ARGUMENT", argument)


def test_a_write_says_where_it_is(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    face.docs()
    wrote = face.ask("PUT", f"{RECORDS}/9", {"vector": [1, 1]}).json()
    assert wrote["shard"] == 0

    async def upsert(name, batch, call):
        return WriteResult(inserted=1, log_index=21, shard=6)

    monkeypatch.setattr(face.node, "upsert", upsert)
    wrote = face.ask("PUT", f"{RECORDS}/9", {"vector": [1, 1]}).json()
    assert (wrote["shard"], wrote["log_index"]) == (6, 21)
    place = {name: wrote[name] for name in ("shard", "log_index")}
    assert face.ask("POST", f"{RECORDS}:count", {"session": [place]}).status_code == 200
    assert last(face, "count").session == ((6, 21),)
