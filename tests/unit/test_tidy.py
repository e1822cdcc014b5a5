"""The style of the house, checked: sizes, words that mean unfinished work, imports that may not be."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
GENERATED = ("vecdb/v1/", "vecdb/internal/")

# Written in pieces, so that this file does not find itself.
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error")) + r")\b")
MACHINE_PATH = re.compile(r"[\"'`\s=(]/(?:" + "|".join(("wo" + "rk", "ho" + "me", "ro" + "ot", "Us" + "ers")) + r")/\w")


def python_files(*rooms: str) -> list[str]:
    found = (path for room in rooms for path in sorted((ROOT / room).rglob("*.py")))
    names = (path.relative_to(ROOT).as_posix() for path in found)
    return [name for name in names if not name.startswith(GENERATED)]


OURS = python_files("vecdb", "tests", "bench")
PRODUCT = python_files("vecdb")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def tree_of(name: str) -> ast.Module:
    return ast.parse(text_of(name), filename=name)


def imported(tree: ast.Module) -> Iterator[str]:
    """The modules a file imports, by their top-level name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.split(".")[0]


def own_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without those of functions inside it: a factory answers for its own."""
    inner = {
        line
        for node in ast.walk(function)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node is not function
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    return len(set(range(function.lineno, (function.end_lineno or function.lineno) + 1)) - inner)


def test_there_is_something_to_check() -> None:
    assert "vecdb/core/errors.py" in PRODUCT
    assert "tests/unit/test_tidy.py" in OURS


@pytest.mark.parametrize("name", OURS)
def test_files_and_functions_are_short(name: str) -> None:
    lines = text_of(name).count("\n")
    assert lines <= FILE_LINES_MAX, f"{name} has {lines} lines, at most {FILE_LINES_MAX}"
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = own_lines(node)
            assert length <= FUNCTION_LINES_MAX, f"{name}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize("name", OURS)
def test_nothing_is_left_unfinished_or_tied_to_a_machine(name: str) -> None:
    for number, line in enumerate(text_of(name).splitlines(), 1):
        assert not UNFINISHED.search(line), f"{name}:{number} speaks of unfinished work: {line.strip()}"
        assert not MACHINE_PATH.search(line), f"{name}:{number} names a path of one machine: {line.strip()}"


@pytest.mark.parametrize("name", OURS)
def test_no_assertion_is_always_true(name: str) -> None:
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Assert):
            assert not isinstance(node.test, ast.Constant | ast.Tuple), f"{name}:{node.lineno} asserts a constant"


@pytest.mark.parametrize("name", PRODUCT)
def test_every_module_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(tree_of(name)), f"{name} has no module docstring"


@pytest.mark.parametrize("name", PRODUCT)
def test_nothing_is_unpickled(name: str) -> None:
    tree = tree_of(name)
    banned = {"cPickle", "dill", "cloudpickle", "marshal", "shelve"} & set(imported(tree))
    assert not banned, f"{name} imports {banned}"
    # The errors may be named, for Numba's own cache raises them.
    errors = {"PickleError", "PicklingError", "UnpicklingError"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "pickle":
            assert {alias.name for alias in node.names} <= errors, f"{name}:{node.lineno} imports from pickle"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle":
            assert node.attr in errors, f"{name}:{node.lineno} uses pickle.{node.attr}"
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            safe = isinstance(node.value, ast.Constant) and node.value.value is False
            assert safe, f"{name}:{node.value.lineno} lets numpy unpickle"


@pytest.mark.parametrize("name", PRODUCT)
def test_only_app_and_config_read_the_environment(name: str) -> None:
    if name in ("vecdb/app.py", "vecdb/config.py", "vecdb/serving/__init__.py"):
        return
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in ("environ", "environb", "getenv"), f"{name}:{node.lineno} reads the environment"
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            taken = {alias.name for alias in node.names} & {"environ", "environb", "getenv"}
            assert not taken, f"{name}:{node.lineno} reads the environment"


def test_the_lock_names_every_dependency_once_and_no_registry() -> None:
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    declared = [*project["dependencies"], *(one for many in project["optional-dependencies"].values() for one in many)]
    locked = text_of("requirements.lock").splitlines()
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.-]*==[^ /]+( ; [^/@]+)?", line) for line in locked), "more than pins"
    pinned = {line.split("==")[0] for line in locked}
    missing = {re.split(r"[^A-Za-z0-9._-]", one)[0].lower().replace("_", "-") for one in declared} - pinned
    assert not missing, f"requirements.lock lacks {sorted(missing)}; make lock"


@pytest.mark.parametrize("name", ["README.md", "Makefile", "pyproject.toml", ".ci/run", ".ci/install"])
def test_what_is_not_python_is_not_tied_to_a_machine_either(name: str) -> None:
    for number, line in enumerate(text_of(name).splitlines(), 1):
        assert not MACHINE_PATH.search(line), f"{name}:{number} names a path of one machine: {line.strip()}"
