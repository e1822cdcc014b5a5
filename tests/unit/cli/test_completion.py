"""Completion as shells ask for it."""

import subprocess
import sys

import pytest

SHELL = """
vecdb() { %s -m vecdb.cli "$@"; }
export -f vecdb
source <(vecdb completion bash)
COMP_WORDS=(%s); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_vecdb_completion vecdb
echo "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(("words", "found"), [
    ("vecdb coll", "collection"), ("vecdb collection de", "describe"), ("vecdb key r", "revoke rotate"),
    ("vecdb query --ef", "--ef-search"), ("vecdb query -c x", ""), ("vecdb shard tr", "transfer-leader"),
    ("vecdb cluster c", "certs"),
])
def test_bash_completes(tmp_path, words: str, found: str) -> None:
    script = SHELL % (sys.executable, words)
    # typer's script runs its words by `env`, which knows no functions.
    script = script.replace("source <(vecdb completion bash)",
                            f"source <(vecdb completion bash | sed 's#\\$1 )#{sys.executable} -m vecdb.cli )#')")
    ran = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, timeout=60, cwd=tmp_path,
                         check=True)
    assert sorted(ran.stdout.split()) == sorted(found.split()), ran.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script(cli, shell: str) -> None:
    ran = cli("completion", shell)
    assert ran.code == 0
    assert "_VECDB_COMPLETE" in ran.out
    assert cli("completion", "dosh").code == 2


def test_names_of_a_servers_collections(cli, docs, opened, monkeypatch) -> None:
    from types import SimpleNamespace

    from vecdb.cli.completing import collections

    given = SimpleNamespace(params={"url": "grpc://a:1", "data": None})
    assert collections(given, "d") == ["docs"]
    assert collections(given, "x") == []
    assert opened[0]["timeout"] <= 1
    assert collections(SimpleNamespace(params={"data": "nowhere"}), "") == []
    assert collections(SimpleNamespace(params={"data": "a", "url": "b"}), "") == []
