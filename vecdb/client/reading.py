"""One page of a scan, around what is damaged if the caller wants the rest."""

from typing import Any

import numpy as np
import numpy.typing as npt

from vecdb.client.backend import Backend
from vecdb.client.results import Records
from vecdb.core.calls import Call
from vecdb.core.errors import DataCorrupted
from vecdb.core.ids import RecordId
from vecdb.core.query import ScanPage, ScanRequest
from vecdb.core.records import Record
from vecdb.core.vectors import stored_dtype


def page(backend: Backend, name: str, request: ScanRequest, skip: bool,
         call: Call | None = None) -> tuple[Records, int | None]:
    """The page that ``request`` asks for and where the next begins (None: nowhere).

    ``skip``: where vectors are damaged, the page without those records, their ids in its ``damaged``.
    """
    try:
        found = backend.scan(name, request, call=call)
    except DataCorrupted as error:
        if not (skip and request.include_vectors and error.fields["ids"]):
            raise
        return _around(backend, name, request, error.fields["ids"], call)
    return Records(found), found.cursor


def _around(backend: Backend, name: str, request: ScanRequest,
            damaged: tuple[RecordId, ...], call: Call | None) -> tuple[Records, int | None]:
    """The page again by ids alone, then the good records by id.

    Metadata and vectors come from one fetch, so that a record written meanwhile is seen in one version.
    """
    ids = backend.scan(name, ScanRequest(request.filter, request.limit, request.after, False, False), call=call)
    lost = set(damaged)
    while True:
        good = [one for one in ids.ids if one not in lost]
        try:
            records = [] if not good else backend.fetch(name, good, include_metadata=request.include_metadata,
                                                        call=call)
            break
        except DataCorrupted as error:  # damage found since, or in a record that another page had
            more = set(error.fields["ids"]) - lost
            if not more:
                raise
            lost |= more
    metadata = [record.metadata for record in records] if request.include_metadata else None
    whole = ScanPage([record.id for record in records], metadata, _stack(backend, name, records), ids.cursor)
    return Records(whole, tuple(one for one in ids.ids if one in lost)), ids.cursor


def _stack(backend: Backend, name: str, records: list[Record]) -> npt.NDArray[Any]:
    schema = backend.schema(name)
    out = np.empty((len(records), schema.row_items), stored_dtype(schema))
    for place, record in enumerate(records):
        out[place] = record.vector
    return out
