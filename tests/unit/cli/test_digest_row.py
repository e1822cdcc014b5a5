"""How a replica that was compared is shown."""

import pytest

from vecdb.cli.shards import digest
from vecdb.core.shards import ReplicaDigest


@pytest.mark.parametrize(("one", "shown"), [
    (ReplicaDigest("n1/4", "ok", "ab12", 50), "-"),
    (ReplicaDigest("n1/4", "ok", "ab12", 50, "ab12"), "ab12"),
    (ReplicaDigest("n1/4", "ok", "ab12", 50, "ff00"), "whole, at a later index"),
    (ReplicaDigest("n1/4", "damaged", "ab12", 50, "ff00"), "ff00"),
])
def test_what_was_read_again_under_writes_is_not_shown_as_another_digest(one: ReplicaDigest, shown: str) -> None:
    assert digest(one)[4] == shown
