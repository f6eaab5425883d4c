"""The OpenAPI document: FastAPI's, with the limits that only the bundle knows."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from service.gateway import Gateway


def publish_limits(app: FastAPI, gateway: Gateway) -> None:
    """Write the bundle's limits into the document as the fields' maxima."""
    parts, fastapi_document = gateway.parts, app.openapi
    tokens = parts.limits.max_target_tokens
    maxima = {
        "GenerateRequest": {"max_new_tokens": tokens, "min_new_tokens": tokens, "top_k": parts.codec.vocabulary},
        "SummarizeRequest": {"max_new_tokens": tokens, "min_new_tokens": tokens, "num_beams": parts.max_beams},
        "CompletionRequest": {"max_tokens": tokens, "min_tokens": tokens, "top_k": parts.codec.vocabulary},
        "ChatRequest": {
            "max_tokens": tokens,
            "max_completion_tokens": tokens,
            "min_tokens": tokens,
            "top_k": parts.codec.vocabulary,
        },
    }

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schemas = fastapi_document()["components"]["schemas"]
            for name, fields in maxima.items():
                for field, maximum in fields.items():
                    _integer(schemas[name]["properties"][field])["maximum"] = maximum
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _integer(schema: dict[str, Any]) -> dict[str, Any]:
    """The part of a field's schema that speaks of integers: itself, or a branch beside null."""
    return next((each for each in schema.get("anyOf", ()) if each.get("type") == "integer"), schema)
