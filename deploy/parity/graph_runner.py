"""Runs a folder of graphs in process, plainly: the yardstick of exports and parity tests, not the engine.

One batch at a time, greedy, caches just as large as the batch needs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from deploy.triton.sessions import open_session
from model.tokenizer import BOS, EOS

SMALLEST_SOURCE = 2
"""Positions of a cross cache: GroupQueryAttention takes a single one for a prompt."""


class GraphRunner:
    """The graphs of one folder (`NAME.onnx` each); sessions are made when first used.

    Args:
        folder: holds the graphs and their shards.
        threads: per session, 0 for all cores.
    """

    def __init__(self, folder: Path, *, threads: int = 0) -> None:
        self.folder = folder
        self.threads = threads
        self._sessions: dict[str, ort.InferenceSession] = {}

    def session(self, name: str) -> ort.InferenceSession:
        """The session of one graph."""
        if name not in self._sessions:
            self._sessions[name] = open_session(self.folder / f"{name}.onnx", threads=self.threads)
        return self._sessions[name]

    def run(self, name: str, **inputs: np.ndarray) -> list[np.ndarray]:
        """All outputs of one graph, in the order it declares them."""
        return self.session(name).run(None, inputs)

    def lm_logits(self, ids_BS: np.ndarray) -> np.ndarray:
        """FP32 [B,S,V] of padded rows."""
        return self.run("hybrid_lm", input_ids=ids_BS)[0]

    def route(self, ids_BS: np.ndarray) -> np.ndarray:
        """Task probabilities [B,3] of padded rows."""
        return self.run("router", input_ids=ids_BS)[0]

    def encode(self, ids_BS: np.ndarray, lengths_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Memory [B,S,D] and task probabilities [B,3]."""
        memory, probabilities = self.run("encoder", input_ids=ids_BS, lengths=lengths_B.astype(np.int32))
        return memory, probabilities

    def emissions(self, ids_BS: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        """Tag scores [B,S,3]."""
        return self.run("qa", input_ids=ids_BS, lengths=lengths_B.astype(np.int32)[:, None])[0]

    def emissions_of_memory(self, ids_BS: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        """Tag scores [B,S,3], by the encoder's and the extractive decoder's graphs."""
        memory, _ = self.encode(ids_BS, lengths_B)
        return self.run("extractive", memory=memory, lengths=lengths_B.astype(np.int32))[0]

    def decoder(self, kind: str, ids_BS: np.ndarray, lengths_B: np.ndarray, max_target: int) -> StepRunner:
        """The decoder `generative` or `pointer`, prefilled with these sources."""
        missing = max(0, SMALLEST_SOURCE - ids_BS.shape[1])
        ids_BS = np.pad(ids_BS, ((0, 0), (0, missing)))
        memory, _ = self.encode(ids_BS, lengths_B)
        prefill = self.session(f"{kind}_prefill")
        names = [output.name for output in prefill.get_outputs()]
        caches = dict(zip(names, prefill.run(None, {"memory": memory}), strict=True))
        return StepRunner(self.session(f"{kind}_step"), caches, ids_BS, lengths_B, max_target)

    def greedy(self, kind: str, ids_BS: np.ndarray, lengths_B: np.ndarray, max_new_tokens: int) -> list[list[int]]:
        """The most likely continuation of each row, without the end token."""
        steps = self.decoder(kind, ids_BS, lengths_B, max_new_tokens)
        texts: list[list[int]] = [[] for _ in ids_BS]
        tokens_B, live_B = np.full(len(ids_BS), BOS), np.ones(len(ids_BS), bool)
        for _ in range(max_new_tokens):
            tokens_B = steps.step(tokens_B).argmax(-1)
            live_B &= tokens_B != EOS
            for row in np.flatnonzero(live_B):
                texts[row].append(int(tokens_B[row]))
            if not live_B.any():
                break
        return texts

    def forced(self, kind: str, ids_BS: np.ndarray, lengths_B: np.ndarray, targets_BT: np.ndarray) -> np.ndarray:
        """Logits [B,T,V] where the decoder reads the given tokens."""
        steps = self.decoder(kind, ids_BS, lengths_B, targets_BT.shape[1])
        return np.stack([steps.step(tokens_B) for tokens_B in targets_BT.T], axis=1)


class StepRunner:
    """One batch in a step graph, its caches bound in place."""

    def __init__(
        self,
        session: ort.InferenceSession,
        caches: dict[str, np.ndarray],
        ids_BS: np.ndarray,
        lengths_B: np.ndarray,
        max_target: int,
    ) -> None:
        buffers = {name: np.ascontiguousarray(array) for name, array in caches.items()}
        self._tokens = np.zeros((len(ids_BS), 1), np.int64)
        self._position = np.zeros(len(ids_BS), np.int32)
        batch, heads, _, head_width = caches["cross_key_0"].shape
        for each in session.get_inputs():
            if each.name.startswith("self_"):
                buffers[each.name] = np.zeros((batch, heads, max_target, head_width), caches["cross_key_0"].dtype)
        buffers |= {
            "tokens": self._tokens,
            "target_lengths": self._position,
            "source_lengths": lengths_B.astype(np.int32),
            "source_ids": ids_BS.astype(np.int64),
            "total_target": np.array(max_target, np.int32),
            "total_source": np.array(caches["cross_key_0"].shape[2], np.int32),
        }
        self._binding = _Binding(session, buffers)

    def step(self, tokens_B: np.ndarray) -> np.ndarray:
        """Feed one token a row; returns the logits [B,V] of the next."""
        self._tokens[:, 0] = tokens_B
        self._binding.run()
        self._position += 1
        return self._binding.logits.copy()


class _Binding:
    """Inputs bound to buffers, every present output to the buffer of its past, logits to an array of their own."""

    def __init__(self, session: ort.InferenceSession, buffers: dict[str, np.ndarray]) -> None:
        self._session = session
        self._buffers = buffers  # bound by address: they must live as long as the binding
        self._binding = session.io_binding()
        shapes = {each.name: each.shape for each in session.get_outputs()}
        self.logits = np.zeros((len(buffers["tokens"]), shapes["logits"][-1]), np.float32)
        for each in session.get_inputs():
            array = buffers[each.name]
            self._binding.bind_input(each.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name in shapes:
            array = self.logits if name == "logits" else buffers[name.removeprefix("present_")]
            self._binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def run(self) -> None:
        """One step."""
        self._session.run_with_iobinding(self._binding)
