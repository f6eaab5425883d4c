"""The Triton model `generator`: the engine behind a decoupled Python-backend model.

    execute (Triton's thread)          decode loop (our thread)
    read the request ── submit ──▶ Engine.step … ── news ──▶ ResponseStream ── one response a step ──▶ client

A request is answered until all of its rows have finished; then its last response carries the final flag. Requests to
cancel and for statistics are answered at once. Where the decode loop has failed, every request is refused in words, so
that whoever asks for statistics knows. Parameters in config.pbtxt: the fields of EngineSettings, `bundle` and
`bundle_sha256`.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .arguments import model_folder, read_parameters
from .engine import Engine
from .limits import EngineSettings
from .protocol import BatchNews, EngineStats, FinishReason
from .wire import RequestKind, Tensors, decode_batch, decode_cancel, decode_kind, encode_news

log = logging.getLogger(__name__)

STEPS_BETWEEN_CHECKS = 4
"""Asking whether a client has gone is a call to another process: one stream is asked every so many steps."""


class TritonPythonModel:
    """What the Python backend loads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle beside the model's file and start the decode loop.

        Raises ValueError on bad parameters, BundleError on a bundle that is damaged or not the configuration's.
        """
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        self._engine = Engine(model_folder(args), EngineSettings.from_parameters(read_parameters(args)))
        self._watch = DisconnectWatch(self._engine)
        self._thread = threading.Thread(
            target=self._engine.run, args=(self._watch.after_step,), name="decode-loop", daemon=True
        )
        self._thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Take requests; the answers come from the decode loop."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._take(request, sender)
            except (ValueError, RuntimeError) as error:
                _send_error(sender, str(error))
            except Exception as error:
                # Anything else must not leave the client waiting either.
                log.exception("a request failed")
                _send_error(sender, f"internal error: {error!r}")

    def finalize(self) -> None:
        """End all rows and join the decode loop."""
        self._engine.close()
        self._thread.join()

    def _take(self, request: Any, sender: Any) -> None:
        if self._engine.failure is not None or not self._thread.is_alive():
            raise RuntimeError(self._engine.failure or "the decode loop has ended: restart the server")
        # Copied: the request's memory goes back to Triton while its rows are still waiting.
        tensors = {each.name(): np.array(each.as_numpy()) for each in request.inputs()}
        kind = decode_kind(tensors)
        if kind is RequestKind.BATCH:
            batch = decode_batch(tensors)
            stream = ResponseStream(sender, self._engine, [row.row_id for row in batch.rows])
            self._engine.submit(batch, stream)
            self._watch.add(stream)
            return
        if kind is RequestKind.CANCEL:
            self._engine.cancel(decode_cancel(tensors))
        _send(sender, encode_news(BatchNews(updates=[]), self._engine.stats), final=True)


class ResponseStream:
    """The sink of one batch: turns its news into responses."""

    def __init__(self, sender: Any, engine: Engine, row_ids: list[int]) -> None:
        self.row_ids = row_ids
        self._sender, self._engine = sender, engine
        self._unfinished = len(row_ids)
        self._is_doubtful = self._is_broken = False

    @property
    def is_done(self) -> bool:
        """Whether every row has finished."""
        return self._unfinished == 0

    def __call__(self, news: BatchNews) -> None:
        """Send one response; where it cannot be sent, the request ends with an error, or its news would be missed."""
        if self._is_broken:
            return
        self._unfinished -= sum(update.finish_reason is not FinishReason.RUNNING for update in news.updates)
        stats: EngineStats = self._engine.stats
        try:
            _send(self._sender, encode_news(news, stats), final=self.is_done)
        except Exception as error:
            self._is_broken, self._unfinished = True, 0
            _send_error(self._sender, f"an answer could not be sent: {error!r}")
            raise

    def is_cancelled(self) -> bool:
        """Whether the client has gone. Where Triton cannot say, it counts as still there, and is asked again."""
        try:
            return self._sender.is_cancelled()
        except Exception:
            if not self._is_doubtful:
                log.exception("a client cannot be asked whether it has gone; its rows go on")
            self._is_doubtful = True
            return False


class DisconnectWatch:
    """Frees the rows of clients that have gone, one stream a check, in turn."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._streams: list[ResponseStream] = []
        self._steps = 0

    def add(self, stream: ResponseStream) -> None:
        """Watch a stream until it is done."""
        with self._lock:
            self._streams.append(stream)

    def after_step(self) -> None:
        """Called by the decode loop."""
        self._steps += 1
        if self._steps % STEPS_BETWEEN_CHECKS:
            return
        with self._lock:
            self._streams = [each for each in self._streams if not each.is_done]
            if not self._streams:
                return
            stream = self._streams.pop(0)
            self._streams.append(stream)
        if stream.is_cancelled():
            self._engine.cancel(stream.row_ids)


def _send(sender: Any, tensors: Tensors, *, final: bool) -> None:
    outputs = [pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in tensors.items()]
    flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
    sender.send(pb_utils.InferenceResponse(output_tensors=outputs), flags=flags)


def _send_error(sender: Any, message: str) -> None:
    error = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
    sender.send(
        pb_utils.InferenceResponse(output_tensors=[], error=error), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
    )
