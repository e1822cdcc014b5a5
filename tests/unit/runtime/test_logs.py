"""A node's log: one line an event, requests named, secrets masked, repetitions counted; embedded it is left alone."""

import asyncio
import io
import json
import logging

import pytest
from grpc._cython import cygrpc

from vecdb.ports import context
from vecdb.runtime import logs


@pytest.fixture
def log():
    """``(lines, undo)``: parsed lines so far, of a configured JSON log."""
    out = io.StringIO()
    undo = logs.configure("info", "json", stream=out)
    try:
        yield lambda: [json.loads(line) for line in out.getvalue().splitlines()]
    finally:
        undo()


def test_an_event_is_a_line_with_its_fields(log):
    logs.logger().info("sealed", collection="docs", records=7)
    (line,) = log()
    assert line["event"] == "sealed"
    assert line["records"] == 7
    assert line["level"] == "info"
    assert line["logger"] == "vecdb"
    assert line["time"].endswith("Z")
    assert not [key for key in line if key.startswith("_")]


def test_the_request_of_the_task_is_named(log):
    context.bind("r-1", "docs", "key-7")
    try:
        logs.logger().info("one")
        logs.logger().info("two", collection="other")
    finally:
        context.bind("")
    logs.logger().info("three")
    first, second, third = log()
    assert (first["request_id"], first["collection"], first["principal"]) == ("r-1", "docs", "key-7")
    assert second["collection"] == "other"
    assert "request_id" not in third


def test_lines_of_libraries_come_the_same_way(log, monkeypatch):
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "level", logging.NOTSET)  # a face here may have hushed it
    logging.getLogger("uvicorn.error").manager._clear_cache()
    logging.getLogger("uvicorn.error").info("started on %s", "here")
    logging.getLogger("uvicorn.access").info("GET /")
    logging.getLogger("grpc").warning("odd %d", 3)
    lines = log()
    assert [(line["logger"], line["event"]) for line in lines] == [("uvicorn.error", "started on here"),
                                                                   ("grpc", "odd 3")]


def test_below_the_level_nothing_is_written(log):
    logs.logger().debug("detail")
    assert log() == []


@pytest.mark.parametrize("text", ["vdb_a1b2_s3cretS3cret-x_y", "Authorization: Bearer abcdef123456",
                                  "authorization: bearer vdb_a1b2_s3cretS3cret"])
def test_secrets_are_masked_wherever_they_stand(log, text):
    logs.logger().info("said", what=text, nested={"deep": [text]}, api_key=text)
    try:
        raise ValueError(text)
    except ValueError:
        logs.logger().exception("failed")
    logging.getLogger("other").error("got %s", text)
    written = json.dumps(log())
    assert "s3cretS3cret" not in written
    assert "abcdef123456" not in written
    assert len(log()) == 3


def test_a_keys_public_id_stays():
    assert logs.mask("key vdb_a1b2_s3cret refused") == "key vdb_a1b2_*** refused"


def test_fields_with_telling_names_are_masked(log):
    logs.logger().info("configured", admin_key="hunter22", password="hunter22", host="localhost")
    (line,) = log()
    assert (line["admin_key"], line["password"], line["host"]) == ("***", "***", "localhost")


def test_a_traceback_is_one_line(log):
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        logs.logger().exception("job_failed")
    (line,) = log()
    assert "RuntimeError: boom" in line["exception"]


def test_repeated_warnings_are_left_out_and_counted():
    out = io.StringIO()
    levels: list[str] = []
    undo = logs.configure("info", "json", stream=out, counted=levels.append)
    try:
        for number in range(5):
            logs.logger().warning("disk_slow", number=number)
        logs.logger().warning("else")
        for _ in range(3):
            logs.logger().info("usual")
    finally:
        undo()
    events = [json.loads(line)["event"] for line in out.getvalue().splitlines()]
    assert events == ["disk_slow", "else", "usual", "usual", "usual", "disk_slow: left out 4 times"]
    assert levels.count("warning") == 7


def test_two_warnings_of_one_event_are_two(log):
    for _ in range(2):
        logs.logger().warning("exposed", warning="no TLS on 10.0.0.1")
        logs.logger().warning("exposed", warning="no keys")
        for front in (0, 1):
            logs.logger().error("front_ended", front=front, pid=100 + front, code=-9)
        for request in ("r-1", "r-2"):
            logs.logger().error("fault", method="Query", request_id=request)
    told = [(line["event"], line.get("warning", line.get("front"))) for line in log()]
    assert told == [("exposed", "no TLS on 10.0.0.1"), ("exposed", "no keys"), ("front_ended", 0), ("front_ended", 1),
                    ("fault", None)]


def test_an_event_with_ever_other_words_is_no_flood():
    out = io.StringIO()
    undo = logs.configure("info", "json", stream=out)
    try:
        for number in range(5_000):
            logs.logger().warning("odd", what=f"name {number}")
        logs.logger().warning("else", what="one")
    finally:
        undo()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len([line for line in lines if line["event"] == "odd"]) == logs.VARIANTS_MAX + 1
    assert lines[-2]["event"] == "else"
    assert lines[-1]["event"] == f"odd: left out {5_000 - logs.VARIANTS_MAX - 1} times"


def _raised(kind, message="%s", *args):
    """As cygrpc's logger tells of what a handler raised."""
    try:
        raise kind("the call is over")
    except BaseException:
        logging.getLogger("grpc._cython.cygrpc").exception(message, *args)


@pytest.mark.parametrize(("kind", "message"), [
    (asyncio.CancelledError, "Unexpected [CancelledError] raised by servicer method [/vecdb.v1.Queries/QueryStream]"),
    (cygrpc.AbortError, "Unexpected [AbortError] raised by servicer method [/vecdb.v1.Queries/Query]"),
    (cygrpc.ExecuteBatchError, "ExecuteBatchError raised in core by servicer method [/vecdb.v1.Queries/Query]")])
def test_a_client_that_goes_away_is_no_error(log, kind, message):
    _raised(kind, message)
    logging.getLogger("grpc._cython.cygrpc").error(message)
    logging.getLogger("grpc._cython.cygrpc").error("Abort error unexpectedly suppressed: %s",
                                                   "Traceback (most recent call last):\n  asyncio.CancelledError")
    assert log() == []
    _raised(ValueError, "Unexpected [ValueError] raised by servicer method [/vecdb.v1.Queries/Query]")
    (line,) = log()
    assert "ValueError" in line["exception"], "a fault of ours is told"


def test_repetitions_by_time():
    seen = logs.Repetitions(every_s=60.0)
    kind = ("a",)
    assert [seen.admit(kind, at) for at in (0.0, 1.0, 59.0)] == [0, None, None]
    assert seen.admit(kind, 60.0) == 2
    assert seen.admit(("b",), 60.0) == 0
    assert seen.admit(kind, 119.0) is None
    assert seen.held_back() == [(kind, 1)]
    assert seen.held_back() == []


def test_kinds_of_warnings_are_bounded():
    seen = logs.Repetitions(every_s=60.0, kinds_max=3)
    assert [seen.admit((str(kind),), 0.0) for kind in range(5)] == [0] * 5
    assert len(seen._seen) == 3
    assert seen.admit(("new",), 100.0) == 0
    assert len(seen._seen) == 1


def test_slow_queries_are_no_repetitions(log):
    for number in range(3):
        logs.logger().warning("slow_query", number=number)
    assert [line["number"] for line in log()] == [0, 1, 2]


def test_console_lines_are_for_people():
    out = io.StringIO()
    undo = logs.configure("info", "console", stream=out)
    try:
        logs.logger().warning("disk_slow", ms=12)
    finally:
        undo()
    assert "disk_slow" in out.getvalue()
    assert "ms=12" in out.getvalue()


def test_undone_it_is_the_programs_again():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    logs.configure("error", "json", stream=io.StringIO())()
    assert (root.handlers, root.level) == before


def test_embedded_it_says_key_and_value_to_the_programs_handlers(caplog):
    with caplog.at_level(logging.INFO):
        logs.logger().warning("job_failed", kind="seal")
    assert caplog.messages == ["event='job_failed' kind='seal'"]


def test_a_log_whose_reader_went_away_stops_nothing():
    out = io.StringIO()
    undo = logs.configure("info", "json", stream=out)
    out.close()
    try:
        logs.logger().info("into the void")
    finally:
        undo()
