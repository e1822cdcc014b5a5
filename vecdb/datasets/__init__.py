"""Real data that ships with the package, so that a first run needs no network.

``wordnet`` is a fixed sample of the synsets of WordNet 3.0, each with the embedding of its text ("lemmas: gloss") by
all-MiniLM-L6-v2.  Embeddings are kept as 8-bit integers, each row to its own scale: a quarter of the size, and the
cosine to the original is at least 0.9999.  The rounded vectors *are* the data set: exact neighbours are to be computed
from what :func:`load_wordnet` returns.  ``bench/sample_wordnet.py`` made the files; ``LICENSE-wordnet`` stands beside.
"""

from vecdb.datasets.wordnet import Dataset, load_wordnet

__all__ = ["Dataset", "load_wordnet"]
