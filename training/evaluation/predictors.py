"""Who answers in an evaluation: trained weights in PyTorch, or a running service over HTTP.

A service is asked from an environment without PyTorch: what needs it is imported where weights are named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import httpx

from training.data.readers import Question

TIMEOUT_S = 300


class Predictor(Protocol):
    """Answers in the order of what was asked."""

    description: str

    def answer(self, questions: Sequence[Question]) -> Iterator[str]:
        """The best answer to each question."""

    def summarise(self, texts: Sequence[str]) -> Iterator[str]:
        """A summary of each text."""


def make_predictor(checkpoint: Path | None, url: str | None) -> Predictor:
    """Who answers. Raises ValueError unless exactly one is named."""
    if url is not None and checkpoint is None:
        return ServicePredictor(url)
    if checkpoint is not None and url is None:
        from training.evaluation.network_predictor import NetworkPredictor, load_weights

        return NetworkPredictor(load_weights(checkpoint))
    raise ValueError(
        "say who answers, one of the two: --checkpoint FOLDER, the `weights` of a run of `trident train`, or "
        "--url http://HOST:PORT, a service that runs, as `trident serve` starts it"
    )


class ServicePredictor:
    """A running service, one request after the other."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=TIMEOUT_S)
        models = self._request("GET", "/v1/models")
        self.description = f"service, {models['data'][0]['id']}"

    def answer(self, questions: Sequence[Question]) -> Iterator[str]:
        """The best answer of /v1/qa; empty where it gives none."""
        for question in questions:
            answers = self._post("/v1/qa", question=question.question, context=question.context)["answers"]
            yield answers[0]["text"] if answers else ""

    def summarise(self, texts: Sequence[str]) -> Iterator[str]:
        """/v1/summarize with its defaults."""
        for text in texts:
            yield self._post("/v1/summarize", text=text)["summary"]

    def _post(self, path: str, **body: str) -> dict[str, Any]:
        return self._request("POST", path, body)

    def _request(self, method: str, path: str, body: dict[str, str] | None = None) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, json=body)
        except httpx.UnsupportedProtocol:
            raise ValueError(
                f"{str(self._client.base_url)!r} is no address of a service: write it as http://127.0.0.1:8000"
            ) from None
        except httpx.HTTPError as error:
            reason = str(error).partition("] ")[2] or str(error) or type(error).__name__  # without "[Errno 111] "
            raise ValueError(
                f"{self._client.base_url} does not answer: {reason}; start it with `make serve`, or name another with "
                "--url"
            ) from error
        if response.is_error:
            raise ValueError(f"{response.url} answered {response.status_code}: {response.text[:500]}")
        return response.json()
