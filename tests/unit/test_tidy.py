"""The style of the house, checked: sizes, words that mean unfinished work, imports that may not be."""

import ast
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
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


Rule = Callable[[str, str, Sequence[ast.AST]], Iterator[str]]
"""Of a file's name, its text and all nodes of its tree, the module first: what is wrong with it."""

OURS = python_files("vecdb", "tests", "bench")
PRODUCT = python_files("vecdb")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def imported(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """The modules a file imports, by their top-level name."""
    for node in nodes:
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


def short(name: str, text: str, nodes: Sequence[ast.AST]) -> Iterator[str]:
    """Files and functions."""
    if (lines := text.count("\n")) > FILE_LINES_MAX:
        yield f"{name} has {lines} lines, at most {FILE_LINES_MAX}"
    for node in nodes:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if (length := own_lines(node)) > FUNCTION_LINES_MAX:
            yield f"{name}:{node.lineno} {node.name} has {length} lines"


def finished(name: str, text: str, nodes: Sequence[ast.AST]) -> Iterator[str]:
    """Nothing is left unfinished, or tied to a machine."""
    for number, line in enumerate(text.splitlines(), 1):
        if UNFINISHED.search(line):
            yield f"{name}:{number} speaks of unfinished work: {line.strip()}"
        if MACHINE_PATH.search(line):
            yield f"{name}:{number} names a path of one machine: {line.strip()}"


def assertions(name: str, text: str, nodes: Sequence[ast.AST]) -> Iterator[str]:
    """None is always true."""
    for node in nodes:
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Constant | ast.Tuple):
            yield f"{name}:{node.lineno} asserts a constant"


def docstrings(name: str, text: str, nodes: Sequence[ast.AST]) -> Iterator[str]:
    """Every module says what it is."""
    assert isinstance(nodes[0], ast.Module)
    if name in PRODUCT and not ast.get_docstring(nodes[0]):
        yield f"{name} has no module docstring"


def pickles(name: str, text: str, nodes: Sequence[ast.AST]) -> Iterator[str]:
    """Nothing is unpickled.  The errors may be named, for Numba's own cache raises them."""
    if name not in PRODUCT:
        return
    errors = {"PickleError", "PicklingError", "UnpicklingError"}
    if banned := {"cPickle", "dill", "cloudpickle", "marshal", "shelve"} & set(imported(nodes)):
        yield f"{name} imports {banned}"
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module == "pickle" and not {
                alias.name for alias in node.names} <= errors:
            yield f"{name}:{node.lineno} imports from pickle"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle" \
                and node.attr not in errors:
            yield f"{name}:{node.lineno} uses pickle.{node.attr}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and not (
                isinstance(node.value, ast.Constant) and node.value.value is False):
            yield f"{name}:{node.value.lineno} lets numpy unpickle"


def environment(name: str, text: str, nodes: Sequence[ast.AST]) -> Iterator[str]:
    """Only app and config read it."""
    if name not in PRODUCT or name in ("vecdb/app.py", "vecdb/config.py", "vecdb/serving/__init__.py"):
        return
    names = {"environ", "environb", "getenv"}
    for node in nodes:
        if (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
                and node.attr in names) or (isinstance(node, ast.ImportFrom) and node.module == "os"
                                            and {alias.name for alias in node.names} & names):
            yield f"{name}:{node.lineno} reads the environment"


RULES: tuple[Rule, ...] = (short, finished, assertions, docstrings, pickles, environment)


def broken(name: str, text: str) -> dict[Rule, list[str]]:
    """What a file does against each rule.  All rules at once, for reading a file is what takes time."""
    nodes = list(ast.walk(ast.parse(text, filename=name)))
    return {rule: list(rule(name, text, nodes)) for rule in RULES}


@pytest.fixture(scope="module")
def everywhere() -> dict[Rule, list[str]]:
    found: dict[Rule, list[str]] = {rule: [] for rule in RULES}
    for name in OURS:
        for rule, words in broken(name, text_of(name)).items():
            found[rule] += words
    return found


def test_there_is_something_to_check() -> None:
    assert "vecdb/core/errors.py" in PRODUCT
    assert "tests/unit/test_tidy.py" in OURS


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule: Rule, everywhere: dict[Rule, list[str]]) -> None:
    assert not everywhere[rule], "\n".join(everywhere[rule])


@pytest.mark.parametrize(("rule", "text"), [
    (short, "\n" * 501), (short, "def long():" + "\n    pass" * 70), (finished, "# TO" + "DO"),
    (finished, "raise NotImplemented" + "Error"), (finished, 'path = "/ho' + 'me/me"'), (assertions, "assert 1"),
    (assertions, "assert (one, 'always')"), (docstrings, "import os"), (pickles, "import marshal"),
    (pickles, "from shelve import open"), (pickles, "from pickle import loads"), (pickles, "pickle.loads(text)"),
    (pickles, "load(file, allow_pickle=True)"), (environment, "os.environ['A']"),
    (environment, "from os import getenv"),
])
def test_what_breaks_a_rule_is_found(rule: Rule, text: str) -> None:
    head = "" if rule is docstrings else '"""What it is."""\n'
    assert [one for one, words in broken("vecdb/core/errors.py", f"{head}{text}\n").items() if words] == [rule]


def test_what_is_allowed_is_not_found() -> None:
    text = '"""What it is."""\nfrom pickle import PickleError\nload(allow_pickle=False)\nassert one, "always"\n'
    assert not any(broken("vecdb/core/errors.py", text).values())
    assert not any(broken("tests/x.py", "import marshal, os\nos.environ['A']\n").values())


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
