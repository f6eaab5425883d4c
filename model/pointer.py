"""The summary decoder: a Transformer decoder that may copy tokens of its source.

A pointer-generator (See et al. 2017, "Get To The Point", section 2.2) on Transformer states:

    p(w) = g · softmax(h·Eᵀ)_w + (1 - g) · Σ_{i: source_i = w} softmax(Wq·h · Wk·memory_i / √D),   g = sigmoid(gate(h))
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.attention import token_mask
from model.configuration import HybridConfig
from model.generative import Decoder

FLOOR = 1e-9
"""Added to the mixture before its logarithm."""


class PointerDecoder(Decoder):
    """The decoder, and the mixture of the vocabulary's distribution with the source's."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config, config.pointer_layers)
        self.copy_query = nn.Linear(config.d_model, config.d_model, bias=False)
        self.copy_key = nn.Linear(config.d_model, config.d_model, bias=False)
        self.gate = nn.Linear(config.d_model, 1)

    def log_mixture(
        self, states_BTD: Tensor, logits_BTV: Tensor, copy_keys_BSD: Tensor, lengths_B: Tensor | None, source_BS: Tensor
    ) -> Tensor:
        """Log probabilities of the next tokens, float32 [B,T,V].

        Args:
            states_BTD: the decoder's states.
            logits_BTV: the tied output layer's.
            copy_keys_BSD: `copy_key(memory)`.
            lengths_B: tokens of each source; None: all S.
            source_BS: the source's token ids.
        """
        copied_BTS, generate_BT1 = self._copied(states_BTD, copy_keys_BSD, lengths_B)
        generated_BTV = generate_BT1 * torch.softmax(logits_BTV.float(), dim=-1)
        index_BTS = source_BS.long()[:, None].expand_as(copied_BTS)
        return torch.log(generated_BTV.scatter_add(2, index_BTS, copied_BTS) + FLOOR)

    def log_target(
        self,
        states_BTD: Tensor,
        log_generated_BT: Tensor,
        copy_keys_BSD: Tensor,
        lengths_B: Tensor | None,
        source_BS: Tensor,
        target_BT: Tensor,
    ) -> Tensor:
        """The mixture's log probability of given tokens alone, float32 [B,T].

        `log_generated_BT` is log softmax(h·Eᵀ) at the targets; the rest is as in `log_mixture`.
        """
        copied_BTS, generate_BT1 = self._copied(states_BTD, copy_keys_BSD, lengths_B)
        same_BTS = source_BS[:, None] == target_BT[..., None]
        copied_BT = torch.where(same_BTS, copied_BTS, 0).sum(-1)
        return torch.log(generate_BT1[..., 0] * log_generated_BT.float().exp() + copied_BT + FLOOR)

    def _copied(self, states_BTD: Tensor, copy_keys_BSD: Tensor, lengths_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """(1 - g) · P(source position) [B,T,S] and g [B,T,1], float32."""
        query_BTD = self.copy_query(states_BTD)
        scores_BTS = (query_BTD @ copy_keys_BSD.transpose(1, 2)).float() * query_BTD.shape[-1] ** -0.5
        if lengths_B is not None:
            inside_BS = token_mask(lengths_B, scores_BTS.shape[-1])
            scores_BTS = scores_BTS.masked_fill(~inside_BS[:, None], float("-inf"))
        gate_BT1 = self.gate(states_BTD).float()
        # sigmoid(-x), for 1 - sigmoid(x) keeps no digit where the gate is nearly 1.
        copied_BTS = torch.sigmoid(-gate_BT1) * functional.softmax(scores_BTS, dim=-1)
        return copied_BTS, torch.sigmoid(gate_BT1)
