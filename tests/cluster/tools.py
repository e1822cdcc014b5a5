"""What tests of containers need beside the product's image, made of packages of the base image's Debian, by name."""

import os
import shutil
import tempfile
from pathlib import Path

from tests.chaos.forgetting import built, compiler
from tests.cluster.compose import OURS, run
from tests.faults import ROOT

_INSTALL = "apt-get update -qq && apt-get install -qq -y --no-install-recommends"
COMPILER = f"RUN {_INSTALL} gcc libc6-dev >/dev/null && rm -rf /var/lib/apt/lists/*"
PROMTOOL = ("RUN cd /tmp && apt-get update -qq && apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb x"
            " && mv x/usr/bin/promtool /usr/bin/ && rm -rf /tmp/* /var/lib/apt/lists/*")


def image_with(name: str, instructions: str) -> str:
    """An image on the base that the product's is made on; the engine keeps it for the next time."""
    base = run([str(ROOT / ".ci" / "engine")], seconds=600).stdout.split()[-1]
    tag = f"{OURS}:{name}"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "Dockerfile").write_text(f"FROM {base}\nUSER 0:0\n{instructions}\n", encoding="utf-8")
        run(["docker", "build", "--quiet", "--tag", tag, folder], seconds=600)
    return tag


def library(source: Path, folder: Path, name: str) -> Path:
    """A library in C for processes in containers, compiled here or, where there is no compiler, in a container."""
    made = folder / name
    if compiler() is not None:
        shutil.copyfile(built(ROOT / "build" / "chaos", source), made)
        return made
    compiled_in_a_container(source, made)
    return made


def compiled_in_a_container(source: Path, made: Path) -> None:
    run(["docker", "run", "--rm", "--network", "none", "--user", f"{os.getuid()}:{os.getgid()}",
         "-v", f"{source.parent}:/source:ro", "-v", f"{made.parent}:/made", image_with("compiler", COMPILER),
         "gcc", "-O2", "-shared", "-fPIC", "-o", f"/made/{made.name}", f"/source/{source.name}", "-ldl", "-lpthread"])
