"""Damaged bytes are an error that says so; a writer and its readers do not disturb each other."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecdb.core.errors import DataCorrupted
from vecdb.core.filters import parse
from vecdb.metadata import GrowingIndex, SealedIndex, layout, merge

RECORDS = [{"n": row, "f": row / 2, "b": row % 2 == 0, "w": f"w{row % 40}", "t": "2024-01-01T00:00:00Z",
            "p": {"lat": 1.0, "lon": 2.0}, "x": None} for row in range(600)]
QUESTIONS = [parse(text) for text in (
    "n > 5", "f == 2", "b == true", "w contains 'w1'", "w in ['w1', 'w2']", "w startswith 'w'",
    "t < time('2025-01-01')", "geo_radius(p, 1, 2, 10)", "x is null", "exists p.lat", "nothing == 1")]


def sealed_bytes(**options):
    index = GrowingIndex(**options)
    index.append(0, RECORDS)
    return bytes(merge([(index, np.arange(600, dtype=np.int32))], 600, **options).to_bytes())


WHOLE = sealed_bytes()
CROWDED = sealed_bytes(max_fields=3)


def ask_everything(data):
    index = SealedIndex.from_buffer(memoryview(data), path="records.vdb")
    return [index.rows(question).bitmap for question in QUESTIONS]


FILES = {"whole": WHOLE, "crowded": CROWDED}
RIGHT = {name: ask_everything(data) for name, data in FILES.items()}


def attempt(data):
    """The answers, or None where damage was noticed."""
    try:
        return ask_everything(data)
    except DataCorrupted as error:
        return None if error.fields["path"] == "records.vdb" else error


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_a_flipped_bit_or_a_cut_is_noticed_or_does_not_matter(name, draw):
    data = FILES[name]
    damaged = bytearray(data)
    at = draw.draw(st.integers(0, len(data) - 1) | st.integers(0, 200))
    if draw.draw(st.booleans()):
        damaged[at] ^= 1 << draw.draw(st.integers(0, 7))
    else:
        del damaged[at:]
    # What may be damaged without notice is bytes between the arrays, and those no question reads
    assert attempt(bytes(damaged)) in (None, RIGHT[name])


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.randoms(use_true_random=False))
def test_nonsense_under_a_right_checksum_never_ends_the_process(file, rng):
    container = layout.Container(memoryview(FILES[file]), "good")
    regions = [(name, container.arrays(name)) for name in container.names]
    _, arrays = rng.choice(regions)
    key = rng.choice(sorted(arrays))
    array = arrays[key].copy()
    if len(array) and rng.random() < 0.7:
        array.view(np.uint8)[rng.randrange(array.nbytes)] ^= 1 << rng.randrange(8)
    else:
        array = array[: rng.randrange(len(array) + 1)]
    if rng.random() < 0.1:
        del arrays[key]
    else:
        arrays[key] = array
    meta = dict(container.meta)
    if rng.random() < 0.1:
        meta["count"] = rng.choice((0, -1, "x", None, 1, 10**12))
    answers = attempt(layout.pack(meta, regions))
    assert answers is None or len(answers) == len(QUESTIONS)


@pytest.mark.parametrize("data", [b"", b"VDBMETA1", b"x" * 100, WHOLE[:20]])
def test_what_is_no_index_is_refused(data):
    with pytest.raises(DataCorrupted):
        SealedIndex.from_buffer(memoryview(data))


def test_readers_see_whole_prefixes_while_the_writer_appends():
    """Readers on threads ask about counts that were published; each answer is exact for its count."""
    index, published, wrong, done = GrowingIndex(), [0], [], threading.Event()
    questions = {text: parse(text) for text in ("n >= 0", "w == 'w3'", "w contains '7'",
                                                      "g exists")}

    def holds(text, row):
        return {"n >= 0": True, "w == 'w3'": row % 50 == 3, "w contains '7'": "7" in f"w{row % 50}",
                "g exists": row % 4 == 0}[text]

    def read():
        while not done.is_set():
            count = published[0]
            for text, node in questions.items():
                if set(index.rows(node, count).bitmap) != {row for row in range(count) if holds(text, row)}:
                    wrong.append((text, count))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for start in range(0, 3_000, 37):
            index.append(start, [{"n": row, "w": f"w{row % 50}", **({"g": {"h": [row]}} if row % 4 == 0 else {}),
                                  **({f"k{row}": row} if row % 500 == 0 else {})} for row in range(start, start + 37)])
            published[0] = start + 37
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert wrong == []
