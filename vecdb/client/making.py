"""Collections made, found and dropped, as steps that the sync and the async Database both run."""

from typing import Any, Final

from vecdb.client.asking import Ask, AskSchema
from vecdb.client.options import (
    CREATE_ALIASES,
    INDEX_NAMES,
    check_indexed_fields,
    check_int,
    check_metric,
    check_text,
    check_vector_type,
    differences,
    index_spec,
    resolve,
)
from vecdb.client.steps import Steps
from vecdb.core.errors import CollectionExists, CollectionNotFound, InvalidArgument
from vecdb.core.layout import ANYHOW, Layout
from vecdb.core.limits import MAX_DIM
from vecdb.core.schema import CollectionSchema, check_name

_INDEX_PARAMETERS: Final = tuple(name for name in INDEX_NAMES if name != "kind")


def check_schema(name: object, dim: object, metric: object, vector_type: object, index: object,
                 indexed_fields: object, if_exists: object, parameters: dict[str, Any]) -> CollectionSchema:
    """The schema that the arguments of ``create_collection`` describe."""
    word = check_text("if_exists", if_exists)
    if word not in ("error", "ok"):
        raise InvalidArgument("if_exists", f"unknown value {word[:100]!r}; known are 'error' and 'ok'",
                              got=word[:100], limit="'error', 'ok'")
    given = resolve(parameters, CREATE_ALIASES, (*_INDEX_PARAMETERS, "vector_type"))
    if "vector_type" in given:
        if not isinstance(vector_type, str) or vector_type != "float32":
            raise InvalidArgument("vector_type", "is given twice, as 'dtype' too", got="dtype", limit="one of them")
        vector_type = given.pop("vector_type")
    return CollectionSchema(
        name=check_name(name), dim=check_int("dim", dim, 1, MAX_DIM),
        metric=check_metric(metric),  # type: ignore[arg-type]  # the schema makes it a member
        vector_type=check_vector_type(vector_type),  # type: ignore[arg-type]
        index=index_spec(index, given), indexed_fields=check_indexed_fields(indexed_fields))


def create(schema: CollectionSchema, existing_ok: bool, layout: Layout = ANYHOW) -> Steps[None]:
    """Make it, or find it there with the same schema, be its layout as it may."""
    try:
        yield Ask("create_collection", schema, layout=layout)
    except CollectionExists as error:
        if not existing_ok:
            raise
        exists = error
    else:
        return
    found: CollectionSchema = yield AskSchema(schema.name, now=True)
    _refuse_other(schema, found, exists)


def find(name: str) -> Steps[None]:
    """Raises CollectionNotFound; what is remembered is no proof that it is there."""
    yield AskSchema(name, now=True)


def names() -> Steps[list[str]]:
    found: list[str] = yield Ask("list_collections")
    return sorted(found)


def drop(name: str, missing_ok: bool) -> Steps[None]:
    try:
        yield Ask("drop_collection", name)
    except CollectionNotFound:
        if not missing_ok:
            raise


def jobs(name: str | None) -> Steps[list[dict[str, Any]]]:
    found: list[dict[str, Any]] = yield Ask("jobs", None if name is None else check_name(name))
    return found


def _refuse_other(wanted: CollectionSchema, existing: CollectionSchema, error: CollectionExists) -> None:
    found = differences(wanted, existing)
    if found:
        error.message += f", and its {'; its '.join(map(str, found))}"
        error.args = (error.message,)
        error.fields["differs"] = {one.name: (one.existing, one.wanted) for one in found}
        raise error
