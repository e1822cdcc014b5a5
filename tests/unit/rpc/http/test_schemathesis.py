"""The OpenAPI document against the application: what it promises is what is answered, by hypothesis."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.unit.rpc.http.conftest import Face, opened


def no_fault(context: Any, response: Any, case: Any) -> None:
    """Deadlines of a millisecond pass; nothing else is the server's doing."""
    assert response.status_code < 500 or response.status_code == 504, response.text


CHECKS = [no_fault, status_code_conformance, content_type_conformance, response_schema_conformance,
          response_headers_conformance, negative_data_rejection]

BOUNDED = settings(max_examples=20, derandomize=True, deadline=None, database=None,
                   phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))


def _fitting(body: Any) -> Any:
    """A body that is sound by itself, cut so that it fits the collection too: one component, columns of one length."""
    if not isinstance(body, dict):
        return body
    out = dict(body)
    for name in ("vector", "vectors"):
        if isinstance(out.get(name), list):
            out[name] = out[name][:1] if name == "vector" else [row[:1] for row in out[name]]
    if isinstance(out.get("records"), list):
        out["records"] = [_fitting(record) for record in out["records"]]
    columns = [out[name] for name in ("ids", "vectors", "metadata") if isinstance(out.get(name), list)]
    if "vectors" in out and len(columns) > 1:
        least = min(map(len, columns))
        out = {name: value[:least] if isinstance(value, list) else value for name, value in out.items()}
    return out


def _filled(face: Face, mode: GenerationMode) -> Any:
    """The document's operations over a collection whose vectors have one component."""
    face.docs(dim=1)
    face.ask("POST", "/v1/collections/docs/records", {"ids": [0, "0"], "vectors": [[0], [1]]})
    face.keys.create("first", [])
    loaded = schemathesis.openapi.from_asgi("/openapi.json", face.app())

    @loaded.hook("map_path_parameters")
    def known(context: Any, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        """What ought to be done is asked of what there is; what ought not to be, half of the time."""
        for name, value in (("name", "docs"), ("key", "zzzzzzzzaaaa"), ("id", "0")):
            given = (parameters or {}).get(name)
            if isinstance(given, str) and (mode is GenerationMode.POSITIVE or ord(given[:1] or "a") % 2):
                parameters[name] = value  # type: ignore[index]
        return parameters

    if mode is GenerationMode.POSITIVE:
        @loaded.hook("map_body")
        def fit(context: Any, body: Any) -> Any:
            return _fitting(body)

    return loaded


def _all_operations() -> list[tuple[str, str, GenerationMode]]:
    """Everything as it should be and otherwise; what takes no input has no otherwise."""
    with opened() as face:
        document = face.ask("GET", "/openapi.json").json()
    return [(path, verb.upper(), mode) for path, verbs in document["paths"].items() for verb in verbs
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
            if mode is GenerationMode.POSITIVE or verbs[verb].get("parameters")]


@pytest.mark.parametrize(("path", "verb", "mode"), _all_operations())
def test_the_document_holds(face: Face, path: str, verb: str, mode: GenerationMode) -> None:
    operation = _filled(face, mode)[path][verb]
    seen: set[int] = set()

    @BOUNDED
    @given(operation.as_strategy(generation_mode=mode))
    def answered(case: Any) -> None:
        seen.add(case.call_and_validate(checks=CHECKS).status_code)

    answered()
    if mode is GenerationMode.POSITIVE:
        assert any(status < 300 for status in seen), f"nothing was ever done, only {sorted(seen)}"
