"""Runs the trained network itself: the reference that graphs are compared with."""

from __future__ import annotations

import numpy as np
import torch

from model.network import HybridModel


class TorchRunner:
    """`deploy.parity.agreement.Runner` on PyTorch; arrays as GraphRunner describes them."""

    def __init__(self, model: HybridModel) -> None:
        self._model = model.eval()

    @torch.inference_mode()
    def lm_logits(self, ids_BS: np.ndarray) -> np.ndarray:
        """FP32 [B,S,V] of padded rows."""
        return self._model(torch.from_numpy(ids_BS)).numpy()

    @torch.inference_mode()
    def route(self, ids_BS: np.ndarray) -> np.ndarray:
        """Task probabilities [B,3] of padded rows."""
        return self.encode(ids_BS, self._model.lengths_of(torch.from_numpy(ids_BS)).numpy())[1]

    @torch.inference_mode()
    def encode(self, ids_BS: np.ndarray, lengths_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Memory [B,S,D] and task probabilities [B,3]."""
        ids, lengths = _tensors(ids_BS, lengths_B)
        memory = self._model.encode(ids, lengths)
        return memory.numpy(), self._model.task_logits(memory, lengths).softmax(-1).numpy()

    @torch.inference_mode()
    def emissions(self, ids_BS: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        """Tag scores [B,S,3]."""
        ids, lengths = _tensors(ids_BS, lengths_B)
        return self._model.emissions(self._model.encode(ids, lengths), lengths).numpy()

    def emissions_of_memory(self, ids_BS: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        """The same: the network has one way to them."""
        return self.emissions(ids_BS, lengths_B)

    @torch.inference_mode()
    def forced(self, kind: str, ids_BS: np.ndarray, lengths_B: np.ndarray, targets_BT: np.ndarray) -> np.ndarray:
        """Logits, or the pointer's log probabilities, [B,T,V] where the decoder reads the given tokens."""
        ids, lengths = _tensors(ids_BS, lengths_B)
        memory, targets = self._model.encode(ids, lengths), torch.from_numpy(targets_BT)
        if kind == "generative":
            return self._model.generative_logits(memory, lengths, targets).numpy()
        return self._model.pointer_log_probs(memory, lengths, ids, targets).numpy()

    def greedy(self, kind: str, ids_BS: np.ndarray, lengths_B: np.ndarray, max_new_tokens: int) -> list[list[int]]:
        """The most likely continuation of each row, without the end token."""
        ids, lengths = _tensors(ids_BS, lengths_B)
        return self._model.greedy(kind, ids, lengths, max_new_tokens)

    @torch.inference_mode()
    def best_span(self, emissions_S3: np.ndarray, context: slice) -> tuple[int, int] | None:
        """The likeliest label sequence's span over the context's positions; None where that is no span."""
        bounds_12 = torch.tensor([[context.start, context.stop]])
        spans = self._model.extractive.crf.best(torch.from_numpy(emissions_S3)[None], bounds_12)
        if spans.none[0] > spans.probability[0, 0]:
            return None
        return int(spans.start[0, 0]), int(spans.end[0, 0])


def _tensors(ids_BS: np.ndarray, lengths_B: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(ids_BS), torch.from_numpy(lengths_B).long()
