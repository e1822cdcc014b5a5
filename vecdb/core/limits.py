"""Every limit of vecdb, with its reason.  Exceeding one is a typed error that names it."""

from typing import Final

MAX_DIM: Final = 32_768
"""Largest dimension.  Above the widest embedding in use (12,288) and still a 128 KiB float32 row."""

MAX_K: Final = 10_000
"""Most results of one query.  A larger answer is an export: use ``scan``."""

MAX_EF: Final = 20_000
"""Widest beam: above it an exact scan is cheaper on any segment this engine makes."""

MAX_M: Final = 128
"""Most links a vertex keeps above level 0 (twice as many on it)."""

MAX_BATCH_RECORDS: Final = 100_000
"""Most records in one batch as applied; the Python face splits longer input by itself."""

MAX_BATCH_BYTES: Final = 64 << 20
"""Most bytes in one batch as applied: the size of one message, and of one log entry's upper end."""

MAX_QUERY_ROWS: Final = 100_000
"""Most queries in one call."""

MAX_RESULTS: Final = 10_000_000
"""Most results of one call (queries times k): above, the answer alone takes gigabytes."""

MAX_RESULT_BYTES: Final = 1 << 30
"""Most bytes of vectors in one answer."""

MAX_NPROBE: Final = 1 << 20
"""Most lists probed, as in the schema: no index has more."""

MAX_ID_BYTES: Final = 128
"""Longest string id in UTF-8: long enough for a URL's hash or a UUID with a prefix."""

MAX_INT_ID: Final = (1 << 63) - 1
"""Largest integer id."""

MAX_METADATA_BYTES: Final = 64 << 10
"""Largest metadata object of one record, as compact JSON."""

MAX_METADATA_DEPTH: Final = 32
"""Deepest nesting of metadata: bounds recursion on hostile input."""

MAX_FILTER_BYTES: Final = 64 << 10
"""Longest filter text."""

MAX_FILTER_JSON_BYTES: Final = 16 << 20
"""Longest filter in the mapping form as JSON: the longest ``in`` list, its values as long as ids may be."""

MAX_FILTER_DEPTH: Final = 64
"""Deepest nesting of a filter's tree: bounds recursion on hostile input."""

MAX_FILTER_NODES: Final = 4_096
"""Most conditions in one filter."""

MAX_IN_VALUES: Final = 65_536
"""Most values in one ``in`` list."""

MAX_WORD: Final = 256
"""Longest name of a setting's value, of a table's column or of an indexed field: more would only fill messages."""

MAX_NAME_BYTES: Final = 128
"""Longest collection name; it becomes a folder's name."""

MAX_COLLECTIONS: Final = 10_000
"""Most collections in one database: each has a row in the catalog and a folder; those idle longest are closed."""

MAX_INDEXED_FIELDS: Final = 256
"""Most distinct metadata paths indexed per shard; further ones are filtered by reading records."""

MAX_INDEXED_STRING_BYTES: Final = 1_024
"""Longest string that enters an inverted index; longer ones are filtered by reading records."""

MAX_WRITE_TOKENS: Final = 65_536
"""Idempotency keys a shard remembers, the latest: at 1,000 such writes a second a retry may come a minute late.
Each takes some 250 bytes of memory.  Part of what every replica must do alike: change it only with a format."""

MAX_POSITIONS: Final = 4_096
"""Most positions of one read's session: a collection has one for each of its shards."""

MAX_KEYS: Final = 10_000
"""Most API keys of one node: all are held in memory, about a kilobyte each."""

MAX_GRANTS: Final = 64
"""Most grants of one API key; each is asked at every call."""

MAX_GRANT_COLLECTIONS: Final = 256
"""Most names and prefixes in one grant."""
