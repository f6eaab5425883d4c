"""The OpenAPI document: complete, and right about what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

PUBLIC = {
    "/v1/generate": "post",
    "/v1/qa": "post",
    "/v1/summarize": "post",
    "/v1/infer": "post",
    "/v1/completions": "post",
    "/v1/chat/completions": "post",
    "/v1/models": "get",
    "/health/live": "get",
    "/health/ready": "get",
    "/metrics": "get",
}


OPENAI_PATHS = {"/v1/completions", "/v1/chat/completions"}
"""Fields at fault are 400 there, as they are at OpenAI."""


@pytest.fixture(scope="module")
def document(gateway) -> dict[str, Any]:
    return httpx.get(f"{gateway.url}/openapi.json").json()


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (each for name, each in value.items() if name == "$ref")
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def schema_of(document: dict[str, Any], path: str) -> dict[str, Any]:
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    return document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]


def test_every_endpoint_is_described_with_its_errors(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    for path, method in PUBLIC.items():
        operation = document["paths"][path][method]
        assert operation["description"]
        if method == "post":
            assert operation["responses"].keys() >= {"200", "400", "413", "415", "429", "500", "503", "504"}
            assert ("422" in operation["responses"]) == (path not in OPENAI_PATHS)
            assert {each["name"] for each in operation["parameters"]} == {
                "X-Request-Timeout-Ms",
                "X-Request-ID",
                "X-Service-Tier",
            }


def test_every_reference_leads_somewhere_and_every_error_is_the_envelope(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for reference in references(document):
        assert re.fullmatch(r"#/components/schemas/\w+", reference)
        assert reference.rpartition("/")[2] in schemas
    assert "HTTPValidationError" not in schemas
    for path in document["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if status >= "400":
                    content = response["content"]["application/json"]
                    assert content["schema"] == {"$ref": "#/components/schemas/ErrorResponse"}


@pytest.mark.parametrize("path", [path for path, method in PUBLIC.items() if method == "post"])
def test_the_examples_are_answered(client: httpx.Client, document: dict[str, Any], path: str) -> None:
    (example,) = schema_of(document, path)["examples"]
    response = client.post(path, json=example)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("path", "field", "valid"),
    [
        ("/v1/generate", "max_new_tokens", {"prompt": "a"}),
        ("/v1/generate", "top_k", {"prompt": "a"}),
        ("/v1/generate", "temperature", {"prompt": "a"}),
        ("/v1/qa", "top_k", {"question": "a", "context": "a"}),
        ("/v1/summarize", "num_beams", {"text": "a"}),
        ("/v1/completions", "max_tokens", {"model": "trident", "prompt": "a"}),
    ],
)
def test_published_maxima_are_the_limits(
    client: httpx.Client, document: dict[str, Any], path: str, field: str, valid: dict[str, Any]
) -> None:
    schema = schema_of(document, path)["properties"][field]
    maximum: float = next(each["maximum"] for each in [schema, *schema.get("anyOf", ())] if "maximum" in each)
    assert client.post(path, json={**valid, field: int(maximum)}).status_code == 200
    refused = client.post(path, json={**valid, field: int(maximum) + 1}).status_code
    assert refused == (400 if path in OPENAI_PATHS else 422)


@pytest.mark.parametrize("path", [path for path, method in PUBLIC.items() if method == "post"])
def test_every_optional_field_is_said_to_be_nullable(document: dict[str, Any], path: str) -> None:
    schema = schema_of(document, path)
    for name, field in schema["properties"].items():
        assert ({"type": "null"} in field.get("anyOf", ())) == (name not in schema["required"]), name


def test_the_documentation_is_a_page(client: httpx.Client) -> None:
    response = client.get("/docs")
    assert response.status_code == 200
    assert "/openapi.json" in response.text
