"""JSON out."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response


class JsonResponse(Response):
    """A body of JSON, written by orjson, which refuses NaN."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """UTF-8 of the content."""
        return orjson.dumps(content)
