"""Whatever text comes, the parser answers with a tree or InvalidFilter at a place in the text, soon."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from vecdb.core.errors import InvalidFilter
from vecdb.core.filters import evaluate, from_mapping, parse, to_node, to_text

WORDS = ("a", "b.c", "`odd key`", "and", "or", "not", "in", "is", "null", "true", "false", "exists", "contains",
         "startswith", "prefix", "time", "geo_radius", "geo_box", "==", "!=", "<", "<=", ">", ">=", "&&", "||", "!",
         "(", ")", "[", "]", ",", "'x'", '"y"', "1", "-2.5", "1e9", "'2024-01-01'", "=", "'", "`", "\\", ".", "\u200b",
         "é")


def outcome(read, value):
    """The tree, or the refusal; anything else that is raised fails the test."""
    try:
        return read(value), None
    except InvalidFilter as error:
        return None, error


def attempt(text):
    node, refusal = outcome(parse, text)
    if refusal is not None:
        assert refusal.position is None or 0 <= refusal.position <= len(text)
        assert str(refusal)
        return
    assert parse(to_text(node), max_bytes=1 << 30) == node
    assert evaluate(node, {"a": [1, "x", None], "b": {"c": "2024-01-01"}}) in (True, False)


@settings(max_examples=800, deadline=2_000)
@given(st.lists(st.sampled_from(WORDS), max_size=20), st.sampled_from((" ", "")))
@example(["("] * 5_000, "")
@example(["not"] * 5_000, " ")
@example(["!"] * 60_000, "")
@example(["a", "in", "["] + ["1", ","] * 20_000, "")
@example(["a", "<"] * 10_000, " ")
@example(["'"] + ["\\"] * 60_001, "")
@example(["1"] * 60_000, "")
@example(["a"] + ["."] * 60_000, "")
@example(["a.b"] * 20_000, ".")
@example(["(", "a == 1", ")", "or"] * 3_000, " ")
def test_words_in_any_order(words, glue):
    attempt(glue.join(words))


@settings(max_examples=400, deadline=2_000)
@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda data: data.decode("latin-1")))
def test_any_text(text):
    attempt(text)


@settings(max_examples=200, deadline=2_000)
@given(st.binary(max_size=30).map(lambda data: (data + data).decode("utf-16-le", "surrogatepass")))
def test_broken_unicode(text):
    attempt(f"a == '{text}'")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(("a", "a.b", "", "$and", "$or", "$not", "$nor", "$eq", "$gte", "$in", "$exists", "$null",
                         "$prefix", "$geo_radius", "$geo_box", "$time", "$x", "lat", "lon", "radius_m"))
        | st.integers(), inner, max_size=3), max_leaves=8)


@settings(max_examples=500, deadline=2_000)
@given(anything)
def test_any_mapping(value):
    for read in (from_mapping, to_node):
        node, refusal = outcome(read, value)
        assert refusal is None or str(refusal)
        assert node is None or parse(to_text(node), max_bytes=1 << 30) == node
