"""The OpenAPI 3.1 document, written from the table of operations."""

import inspect
from collections.abc import Iterable
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from vecdb.core.limits import MAX_NAME_BYTES
from vecdb.core.schema import NAME_PATTERN
from vecdb.rpc.http import models
from vecdb.rpc.http.operations import NoParams, Operation
from vecdb.rpc.http.replies import JSON

_REF: Final = "#/components/schemas/{model}"

_ERRORS: Final = {
    400: "An argument is refused; fields.argument names it. Nothing was changed.",
    401: "No API key, or one that is unknown, expired or revoked.",
    403: "The key's role does not allow this.",
    404: "There is no such collection, record or key.",
    405: "The path is known, the method is not offered on it.",
    408: "The body came too slowly.",
    409: "It exists already, or the state of the node does not allow it.",
    413: "The body is larger than the node takes.",
    415: "The body is not application/json in UTF-8.",
    429: "A queue, a rate or a memory limit is full; try again after Retry-After seconds.",
    500: "A fault inside the server, damaged data, or an outcome that is not known.",
    501: "The combination asked for is not offered.",
    503: "Starting, stopping, or too many calls at once; try again after Retry-After seconds.",
    504: "The deadline passed before the work was done.",
    507: "No space is left on the server's disk.",
}
_COMMON: Final = (400, 401, 403, 405, 408, 429, 500, 501, 503, 504)
_WITH_BODY: Final = (413, 415)

_PATH: Final[dict[str, dict[str, Any]]] = {
    "name": {"type": "string", "pattern": f"^{NAME_PATTERN}$", "minLength": 1,
             "maxLength": MAX_NAME_BYTES, "description": "a collection's name"},
    "id": {"type": "string", "minLength": 1, "description": "a record's id, percent-encoded; see id_type"},
    "key": {"type": "string", "pattern": "^[a-z2-7]{12}$", "description": "an API key's id"},
}

_SHARED: Final[dict[str, dict[str, Any]]] = {
    "RequestId": {"name": "X-Request-Id", "in": "header", "required": False, "description":
                  "comes back with the reply and stands in the server's logs; another is made if it has more than 128 "
                  "characters, or others than letters, digits and ._:/+=@-", "schema": {"type": "string"}},
    "TimeoutHeader": {"name": "X-Timeout-Ms", "in": "header", "required": False,
                      "description": "milliseconds after which the call is given up",
                      "schema": {"type": "integer", "minimum": 1, "maximum": 9_999_999_999}},
    "Timeout": {"name": "timeout_ms", "in": "query", "required": False, "description": "the same as X-Timeout-Ms",
                "schema": {"type": "integer", "minimum": 1, "maximum": 9_999_999_999}},
    "IdempotencyKey": {"name": "Idempotency-Key", "in": "header", "required": False, "description":
                       "a repetition of the same request with the same key is answered, not done again",
                       "schema": {"type": "string", "pattern": "^[\\x21-\\x7e]{1,64}$"}},
}


def document(operations: Iterable[Operation], version: str) -> dict[str, Any]:
    """All of it, as plain JSON values."""
    listed = list(operations)
    schemas = _schemas(listed)
    paths: dict[str, dict[str, Any]] = {}
    for one in listed:
        paths.setdefault(one.path, {})[one.verb.lower()] = _operation(one)
    return {
        "openapi": "3.1.0",
        "info": {"title": "vecdb", "version": version, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
                 "description": "A vector database: collections, records and nearest neighbours, the API of "
                                "proto/vecdb/v1 as JSON. Unknown members and parameters are errors."},
        "tags": [{"name": "collections", "description": "Whole collections"},
                 {"name": "records", "description": "Records, by id and by filter"},
                 {"name": "queries", "description": "Nearest neighbours"},
                 {"name": "admin", "description": "The node, its API keys, its jobs"},
                 {"name": "health", "description": "Whether the node lives and serves; no key is asked for"}],
        "paths": {**paths, **_health_paths()},
        "components": {
            "schemas": schemas,
            "parameters": _SHARED,
            "responses": {f"Error{http}": _error(text) for http, text in _ERRORS.items()},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "vdb_<id>_<secret>"},
                                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"}},
        },
        "security": [{"bearer": []}, {"header": []}, {}],
    }


def _schemas(operations: list[Operation]) -> dict[str, Any]:
    used: dict[type[BaseModel], None] = {models.ErrorReply: None, models.Health: None, models.Base64Vectors: None,
                                         models.RecordIn: None}
    for one in operations:
        used.update(dict.fromkeys(one.bodies))
        used.update(dict.fromkeys(model for model in one.replies.values() if model is not None))
    _, made = models_json_schema([(model, "validation") for model in used], ref_template=_REF)
    definitions: dict[str, Any] = made["$defs"]
    for schema in definitions.values():
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"]).replace("``", "`")
    return definitions


def _ref(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": _REF.format(model=model.__name__)}


def _operation(one: Operation) -> dict[str, Any]:
    out: dict[str, Any] = {"operationId": one.id, "summary": one.summary, "tags": [one.tag],
                           "parameters": _parameters(one), "responses": _responses(one)}
    if one.role is not None:
        out["description"] = f"Needs the role {one.role.word}."
    if one.bodies:
        refs = [_ref(model) for model in one.bodies]
        content: dict[str, Any] = {"schema": refs[0] if len(refs) == 1 else {"oneOf": refs}}
        examples = {f"{model.__name__}{place or ''}": {"value": value} for model in one.bodies
                    for place, value in enumerate(_examples(model))}
        if examples:
            content["examples"] = examples
        out["requestBody"] = {"required": not one.optional_body, "content": {JSON: content}}
    return out


def _examples(model: type[BaseModel]) -> list[Any]:
    extra = model.model_config.get("json_schema_extra")
    found = extra.get("examples", []) if isinstance(extra, dict) else []
    return found if isinstance(found, list) else []


def _parameters(one: Operation) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name, schema in _PATH.items() if f"{{{name}}}" in one.path]
    if one.params is not NoParams:
        properties = one.params.model_json_schema()["properties"]
        for name, schema in properties.items():
            shown = {key: value for key, value in schema.items() if key not in ("title", "description")}
            if "anyOf" in shown:  # a parameter that is left out is None; none can be sent
                shown = {key: value for key, value in shown["anyOf"][0].items() if key != "title"}
            out.append({"name": name, "in": "query", "required": False, "schema": shown,
                        "description": schema.get("description", "")})
    shared = ["RequestId", "TimeoutHeader", "Timeout"] + (["IdempotencyKey"] if one.write else [])
    return out + [{"$ref": f"#/components/parameters/{name}"} for name in shared]


def _responses(one: Operation) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for http, model in one.replies.items():
        out[str(http)] = {"description": "Done." if model is None else inspect.cleandoc(model.__doc__ or "Done.")
                          .splitlines()[0].replace("``", "`")}
        if model is not None:
            out[str(http)]["content"] = {JSON: {"schema": _ref(model)}}
    failures = {*_COMMON, *one.errors, *(_WITH_BODY if one.bodies else (413,))}
    if one.write or one.audited:
        failures |= {409, 507}
    for http in sorted(failures):
        out[str(http)] = {"$ref": f"#/components/responses/Error{http}"}
    return out


def _error(text: str) -> dict[str, Any]:
    return {"description": text, "content": {JSON: {"schema": _ref(models.ErrorReply)}},
            "headers": {"X-Request-Id": {"schema": {"type": "string"}},
                        "Retry-After": {"schema": {"type": "integer"}, "description": "seconds; where waiting helps"}}}


def _health_paths() -> dict[str, Any]:
    def one(id: str, summary: str, schema: dict[str, Any], kind: str, unready: bool) -> dict[str, Any]:
        responses: dict[str, Any] = {"200": {"description": "It does.", "content": {kind: {"schema": schema}}}}
        if unready:
            responses["503"] = {"description": "It does not; the reasons say why.",
                                "content": {kind: {"schema": schema}}}
        return {"get": {"operationId": id, "summary": summary, "tags": ["health"], "security": [],
                        "responses": responses}}

    health = _ref(models.Health)
    return {"/healthz": one("health", "How the node is; 200 as long as the process answers", health, JSON, False),
            "/livez": one("live", "Whether the process lives", health, JSON, False),
            "/readyz": one("ready", "Whether the node serves: warm, store open, not stopping", health, JSON, True)}
