"""Scans: pages one after the other, around what is damaged if the caller wants the rest."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vecdb.client.asking import Ask, AskLatest, AskSchema
from vecdb.client.results import Records
from vecdb.client.steps import Steps
from vecdb.core.errors import DataCorrupted
from vecdb.core.ids import RecordId
from vecdb.core.query import Cursor, ScanPage, ScanRequest
from vecdb.core.records import Record
from vecdb.core.schema import CollectionSchema
from vecdb.core.vectors import stored_dtype


def page(name: str, request: ScanRequest, skip: bool) -> Steps[tuple[Records, Cursor | None]]:
    """The page that ``request`` asks for and where the next begins (None: nowhere).

    ``skip``: where vectors are damaged, the page without those records, their ids in its ``damaged``.
    """
    try:
        found: ScanPage = yield Ask("scan", name, request)
    except DataCorrupted as error:
        if not (skip and request.include_vectors and error.fields["ids"]):
            raise
        lost = error.fields["ids"]
    else:
        return Records(found), found.cursor
    return (yield from _around(name, request, lost))


def ids_of(name: str, request: ScanRequest) -> Steps[list[RecordId]]:
    """The ids of every page, for a write: of all records acknowledged before it."""
    out: list[RecordId] = []
    after: Cursor | None = request.after
    while after is not None:
        found: ScanPage = yield AskLatest("scan", name, replace(request, after=after))
        out += found.ids
        after = found.cursor
    return out


def _around(name: str, request: ScanRequest, damaged: tuple[RecordId, ...]) -> Steps[tuple[Records, Cursor | None]]:
    """The page again by ids alone, then the good records by id.

    Metadata and vectors come from one fetch, so that a record written meanwhile is seen in one version.
    """
    ids: ScanPage = yield Ask("scan", name, ScanRequest(request.filter, request.limit, request.after, False, False))
    lost = set(damaged)
    while True:
        good = [one for one in ids.ids if one not in lost]
        try:
            records: list[Record] = []
            if good:
                records = yield Ask("fetch", name, good, include_metadata=request.include_metadata)
            break
        except DataCorrupted as error:  # damage found since, or in a record that another page had
            more = set(error.fields["ids"]) - lost
            if not more:
                raise
            lost |= more
    schema: CollectionSchema = yield AskSchema(name)
    metadata = [record.metadata for record in records] if request.include_metadata else None
    whole = ScanPage([record.id for record in records], metadata, _stack(schema, records), ids.cursor,
                     ids.missing)
    return Records(whole, tuple(one for one in ids.ids if one in lost)), ids.cursor


def _stack(schema: CollectionSchema, records: list[Record]) -> npt.NDArray[Any]:
    out = np.empty((len(records), schema.row_items), stored_dtype(schema))
    for place, record in enumerate(records):
        out[place] = record.vector
    return out
