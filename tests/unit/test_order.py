"""The order in which the files of tests are handed to workers."""

from tests.conftest import LONG, in_turns


def test_files_of_long_rooms_come_first_and_take_turns():
    files = [("unit", "u1"), (LONG[1], "b1"), (LONG[0], "a1"), (LONG[0], "a2"), ("", "elsewhere"), (LONG[0], "a3"),
             (LONG[1], "b2"), ("unit", "u2")]
    assert in_turns(files) == ["a1", "b1", "a2", "b2", "a3", "u1", "elsewhere", "u2"]
    assert in_turns([]) == []


def test_long_rooms_are_there(request):
    for room in LONG:
        assert (request.config.rootpath / "tests" / room).is_dir(), room
