"""Compiled kernels: the only place that imports numba.

- ``simd`` builds vector instructions with LLVM's builder instead of hoping for the auto-vectorizer, and chooses the
  byte dot product where the host has it;
- one *scorer* per way of storing a row (``distance``, ``sq8``, ``sq4``, ``pq``, ``rabitq``), registered by name in
  ``registry``; ``beam``, ``scan`` and ``link`` are made for a family from its scorer;
- ``_jit`` names the compiler's flags once, and keeps a disk cache keyed by a fingerprint of all code an entry reaches.

Entries release the GIL, take memory by address or as read-only arrays, and allocate nothing a caller could give them.
"""
