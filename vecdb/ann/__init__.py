"""Indexes over arrays: they know ordinals and rows, and nothing of storage, ids or filters' meaning.

- ``space`` says how vectors of a metric and type lie in memory and what *raw* distance kernels speak of;
- ``codes`` is the one thing searches walk over: exact rows, or a quantizer's codes with its own scorer;
- ``flat`` scans, ``hnsw`` walks a graph, ``ivf`` reads lists; each takes a bitset of allowed ordinals;
- ``quantize`` makes codes: 8 and 4 bits a component, product codes, RaBitQ; ``rerank`` puts exact distances back.

Everything that runs long takes ``run``, a function that runs thunks, perhaps on threads; results never depend on it.
"""
