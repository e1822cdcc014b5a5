"""A pulled plug takes what was not synced, and nothing else."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.plugs import Plug, missing
from tests.faults import needs

pytestmark = [needs(lambda: shutil.which("mkfs.ext4"), "the disk is an ext4 image, and mkfs.ext4 is not "
                    "here; .ci/tools installs it (e2fsprogs), and in CI its lack fails"),
              pytest.mark.skipif(bool(shutil.which("mkfs.ext4") and missing()),
                                 reason="only a kernel that shuts a mounted ext4 down drops what was not synced, and "
                                 f"here it, root or a loop device is missing: {missing()}")]


@pytest.fixture
def plug(tmp_path: Path) -> Iterator[Plug]:
    made = Plug(tmp_path / "disk", tmp_path / "image", 64 << 20)
    yield made
    made.close()


def test_synced_bytes_and_names_stay_and_the_others_go(plug: Plug) -> None:
    with (plug.path / "synced").open("wb") as file:
        file.write(b"x" * 10_000)
        file.flush()
        os.fsync(file.fileno())
    handle = os.open(plug.path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    with (plug.path / "synced").open("ab") as file:
        file.write(b"y" * 10_000)
    (plug.path / "fresh").write_bytes(b"z" * 10_000)
    plug.pull()
    assert (plug.path / "synced").read_bytes()[:10_000] == b"x" * 10_000
    assert not (plug.path / "fresh").exists() or (plug.path / "fresh").read_bytes() != b"z" * 10_000
    (plug.path / "again").write_bytes(b"the disk works on")
    plug.pull()
    assert (plug.path / "synced").read_bytes()[:10_000] == b"x" * 10_000
