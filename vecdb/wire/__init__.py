"""Between protobuf and core, once, at the edge.

:mod:`~vecdb.wire.convert` is for values, :mod:`~vecdb.wire.status` for errors.
"""
