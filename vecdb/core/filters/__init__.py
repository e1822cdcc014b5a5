"""Filters on metadata: three ways to write one, one tree, one meaning.

``tree`` is the tree; ``parse`` reads expression strings, ``builder`` is ``F``, ``mapping`` the ``$op`` form;
``evaluate`` is the meaning: what a tree says of one record's metadata.
"""
