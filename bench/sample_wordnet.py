"""Makes the bundled WordNet sample: ``python -m bench.sample_wordnet SYNSETS.jsonl.gz EMBEDDINGS.npy [FOLDER]``.

The first file has one JSON object a synset (id, text, lemmas, pos, lexname, tag_count, n_lemmas), the second the
embedding of each text in the same order, rows of length 1 (float16 or float32).  Records and queries are a fixed random
sample without overlap, in the order of the source.  Each row is scaled to a largest component of 127 and rounded.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
import orjson

RECORDS, QUERIES, SEED = 20_000, 500, 20_060_101
LETTERS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
FIELDS = ("text", "lemmas", "pos", "lexname", "tag_count", "n_lemmas")


def rounded(rows: np.ndarray) -> np.ndarray:
    """float (n, d) -> int8 (n, d), each row to its own scale."""
    rows = rows.astype(np.float64)
    return np.rint(rows * (127 / np.abs(rows).max(axis=1, keepdims=True))).astype(np.int8)


def line(synset: dict) -> bytes:
    """One record.  The letters are WordNet's own, for adjectives and adverbs may share an offset and an initial."""
    name = LETTERS[synset["pos"]] + synset["id"][1:]
    return orjson.dumps({"id": name} | {field: synset[field] for field in FIELDS}) + b"\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("synsets", type=Path)
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("vecdb/datasets"))
    arguments = parser.parse_args()
    with gzip.open(arguments.synsets) as source:
        synsets = [orjson.loads(text) for text in source]
    embeddings = np.load(arguments.embeddings, mmap_mode="r", allow_pickle=False)
    if len(synsets) != len(embeddings):
        raise SystemExit(f"{len(synsets)} synsets but {len(embeddings)} embeddings")
    chosen = np.random.default_rng(SEED).permutation(len(synsets))[: RECORDS + QUERIES]
    records, queries = np.sort(chosen[:RECORDS]), np.sort(chosen[RECORDS:])
    codes = {"records": rounded(embeddings[records]), "queries": rounded(embeddings[queries])}
    for name, place in (("records", records), ("queries", queries)):
        original, coded = embeddings[place].astype(np.float64), codes[name].astype(np.float64)
        cosine = (original * coded).sum(axis=1) / np.linalg.norm(original, axis=1) / np.linalg.norm(coded, axis=1)
        print(f"{name}: {coded.shape}, cosine to the original at least {cosine.min():.6f}, mean {cosine.mean():.6f}")
    np.savez_compressed(arguments.folder / "wordnet.npz", **codes)
    lines = [line(synsets[i]) for i in [*records, *queries]]
    # No time of making and no name in the header: the same input gives the same file.
    (arguments.folder / "wordnet.jsonl.gz").write_bytes(gzip.compress(b"".join(lines), compresslevel=9, mtime=0))


if __name__ == "__main__":
    main()
