"""Values between protobuf and core: ``*_to_wire`` writes checked values, ``*_from_wire`` trusts nothing it reads.

A request's ``*_from_wire`` raises the errors that the SDK's facade raises for the same argument, and no others.  A
reply's raises plain VecdbError where the server sent what cannot be.  Fields that are not known are ignored.
"""

from vecdb.wire.filters import filter_from_wire, filter_to_wire, some_filter_from_wire
from vecdb.wire.ids import ids_from_wire, ids_to_wire
from vecdb.wire.jsons import metadata_from_wire, object_from_wire, object_to_wire
from vecdb.wire.matrix import matrix_from_wire, matrix_to_wire
from vecdb.wire.queries import (
    answer_from_wire,
    cost_from_wire,
    cost_to_wire,
    query_from_wire,
    query_to_wire,
    result_from_wire,
    result_to_wire,
)
from vecdb.wire.reads import put_read, read_from_wire, read_to_wire
from vecdb.wire.records import (
    Fetch,
    count_from_wire,
    count_to_wire,
    counted_from_wire,
    counted_to_wire,
    delete_from_wire,
    delete_to_wire,
    fetch_from_wire,
    fetch_to_wire,
    page_from_wire,
    page_to_wire,
    records_from_wire,
    records_to_wire,
    scan_from_wire,
    scan_to_wire,
    update_from_wire,
    update_to_wire,
    upsert_from_wire,
    upsert_to_bytes,
    upsert_to_wire,
    write_result_from_wire,
    write_result_to_wire,
)
from vecdb.wire.schema import (
    description_from_wire,
    description_to_wire,
    layout_from_wire,
    layout_to_wire,
    name_from_wire,
    schema_from_wire,
    schema_to_wire,
)

__all__ = [
    "Fetch", "answer_from_wire", "cost_from_wire", "cost_to_wire", "count_from_wire", "count_to_wire",
    "counted_from_wire", "counted_to_wire", "delete_from_wire", "delete_to_wire", "description_from_wire",
    "description_to_wire", "fetch_from_wire", "fetch_to_wire", "filter_from_wire", "filter_to_wire", "ids_from_wire",
    "ids_to_wire",
    "layout_from_wire", "layout_to_wire", "matrix_from_wire", "matrix_to_wire", "metadata_from_wire",
    "name_from_wire", "object_from_wire", "object_to_wire", "page_from_wire", "page_to_wire", "put_read",
    "query_from_wire", "query_to_wire", "read_from_wire", "read_to_wire", "records_from_wire", "records_to_wire",
    "result_from_wire", "result_to_wire", "scan_from_wire", "scan_to_wire", "schema_from_wire", "schema_to_wire",
    "some_filter_from_wire", "update_from_wire", "update_to_wire", "upsert_from_wire",
    "upsert_to_bytes", "upsert_to_wire", "write_result_from_wire", "write_result_to_wire",
]
