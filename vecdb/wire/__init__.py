"""Between protobuf and core, once, at the edge.

:mod:`~vecdb.wire.convert` is for values, :mod:`~vecdb.wire.status` for errors.

- **Nothing that arrives is trusted**, from an own client neither: a request is held against the schema with the checks
  of the SDK's facade, so both refuse in the same words, and what leaves here needs no second look.
- **Columns, not objects**: ids and vectors are one ``bytes`` field each, read once (a read copies) and checked as
  arrays.  Messages are filled in place, for one given to another's constructor is copied whole.
- **``normalized``** saves the second normalisation and keeps bits: a cosine vector that is said to have unit length is
  measured, not believed, and stored as it came.
- **JSON** that orjson would write again byte for byte is taken as it stands; any other goes through a strict reader,
  since equal keys and integers of more than 64 bits would pass a lenient one changed.
- **Errors** keep their class, message and fields; what was not raised on purpose says only its request id.
"""
