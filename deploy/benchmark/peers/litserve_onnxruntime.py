"""LitServe: its batching loop waits `delay_ms` for `max_batch_size` requests.

One worker, because one run uses all cores, and ZeroMQ in place of its manager's queue (`fast_queue`), as its
documentation advises for more than a hundred requests a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import litserve
import numpy as np

from deploy.benchmark.peers.options import HOST, PeerOptions
from deploy.benchmark.peers.reading import Question, QuestionReader
from deploy.benchmark.peers.window_model import WindowModel

Answered = tuple[Question, list[np.ndarray]]

TIMEOUT_S = 600.0


class Questions(litserve.LitAPI):
    """Reads, runs and answers in the worker's process."""

    def setup(self, device: str) -> None:
        """Load model and tokenizer, in the worker."""
        options = PeerOptions()
        self._model, self._reader, self._loop = (
            WindowModel(options.bundle),
            QuestionReader(options.bundle),
            asyncio.Runner(),
        )

    def decode_request(self, request: Mapping[str, str], **_: Any) -> Question:
        """A body to windows."""
        return self._loop.run(self._reader.read(request["question"], request["context"]))

    def batch(self, inputs: Sequence[Question]) -> Sequence[Question]:
        """As they are: windows differ in length, and the model pads them."""
        return inputs

    def predict(self, x: Sequence[Question], **_: Any) -> list[Answered]:
        """All windows of all questions, at once."""
        emissions = iter(self._model([window for question in x for window in question.windows]))
        return [(question, [next(emissions) for _ in question.windows]) for question in x]

    def unbatch(self, output: list[Answered]) -> list[Answered]:
        """As they are."""
        return output

    def encode_response(self, output: Answered, **_: Any) -> dict[str, Any]:
        """Tag scores to an answer."""
        return self._reader.answer(*output)


def main() -> None:
    """Serve until a signal."""
    options = PeerOptions()
    api = Questions(
        # 1 is another loop, which hands single requests over.
        max_batch_size=max(2, options.max_batch_size),
        batch_timeout=options.delay_ms / 1e3,
        api_path="/v1/qa",
    )
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=TIMEOUT_S, fast_queue=True)
    server.run(host=HOST, port=options.port, num_api_servers=1, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
