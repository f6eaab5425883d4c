"""The OpenAPI document: FastAPI's, with the limits that only the bundle knows, and without errors that never occur."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from service.gateway import Gateway


def correct_document(app: FastAPI, gateway: Gateway) -> None:
    """Make the app's document say what is so: the bundle's limits as the fields' maxima, and our errors only."""
    tools, fastapi_document = gateway.served.tools, app.openapi
    tokens = tools.limits.max_target_tokens
    maxima = {
        "GenerateRequest": {"max_new_tokens": tokens, "min_new_tokens": tokens, "top_k": tools.codec.vocabulary},
        "SummarizeRequest": {"max_new_tokens": tokens, "min_new_tokens": tokens, "num_beams": tools.limits.max_beams},
        "CompletionRequest": {"max_tokens": tokens, "min_tokens": tokens, "top_k": tools.codec.vocabulary},
        "ChatRequest": {
            "max_tokens": tokens,
            "max_completion_tokens": tokens,
            "min_tokens": tokens,
            "top_k": tools.codec.vocabulary,
        },
    }

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            whole = fastapi_document()
            drop_foreign_errors(whole)
            schemas = whole["components"]["schemas"]
            for name, fields in maxima.items():
                for field, maximum in fields.items():
                    _integer(schemas[name]["properties"][field])["maximum"] = maximum
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def drop_foreign_errors(document: dict[str, Any]) -> None:
    """Take out FastAPI's own 422, which it adds to every operation with a parameter: here it never occurs."""
    for path in document["paths"].values():
        for operation in path.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _integer(schema: dict[str, Any]) -> dict[str, Any]:
    """The part of a field's schema that speaks of integers: itself, or a branch beside null."""
    return next((each for each in schema.get("anyOf", ()) if each.get("type") == "integer"), schema)
