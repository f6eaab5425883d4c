"""The hybrid network: one embedding, one encoder, three decoders.

    input_ids ─▶ embedding ─▶ encoder ─▶ hybrid ─▶ memory [B,S,D]
                     ┊                               ├─▶ lm_head ······▶ masked-token logits [B,S,V]
                     ┊ tied                          ├─▶ router ───────▶ task logits [B,3]
                     ┊                               ├─▶ extractive ───▶ emissions [B,S,3] ─▶ crf ─▶ span
                     └┈ target_ids ─▶ embedding ─▶   ├─▶ generative ···▶ logits [B,T,V]
                                                     └─▶ pointer ······▶ log probabilities [B,T,V]

Names in the state dict, which the graph builder reads; `{i}` counts from 0, Linears without `bias` have none:

    embedding.weight                                    [V,D]; also the output layer wherever ···▶ stands
    encoder.positions.{table, gate.{weight,bias}}       table [max_positions,D]
    encoder.layers.{i}.{attention_norm, feed_forward_norm}.{weight,bias}
    encoder.layers.{i}.attention.{qkv, out}.weight      qkv [3D,D]: query, key, value
    encoder.layers.{i}.feed_forward.{up, down}.{weight,bias}
    encoder.norm.{weight,bias}
    hybrid.mix                                          [units], before the softmax
    hybrid.units.{i}.attention.{qkv, out}.weight
    hybrid.units.{i}.recurrence.{weight,bias}_{ih,hh}_{l0,l0_reverse}      as nn.GRU's
    hybrid.units.{i}.norm.{weight,bias}
    router.{hidden, output}.{weight,bias}
    lm_head.{transform, norm}.{weight,bias}
    extractive.recurrence.{weight,bias}_{ih,hh}_{l0,l0_reverse}            as nn.LSTM's
    extractive.{norm, output}.{weight,bias}
    extractive.crf.{start, transition, end}             tags O, B, I; transition [from,to]
    {generative, pointer}.positions.{table, gate.{weight,bias}}            table [max_target_positions,D]
    {generative, pointer}.layers.{i}.{self_norm, cross_norm, feed_forward_norm}.{weight,bias}
    {generative, pointer}.layers.{i}.self_attention.{qkv, out}.weight      qkv [D+2KE,D] for K key and value heads
    {generative, pointer}.layers.{i}.cross_attention.{q, kv, out}.weight   kv [2KE,D]: key, value
    {generative, pointer}.layers.{i}.feed_forward.{up, down}.{weight,bias}
    {generative, pointer}.norm.{weight,bias}
    pointer.{copy_query, copy_key}.weight, pointer.gate.{weight,bias}
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from model.attention import RowPositions, key_mask
from model.configuration import HybridConfig
from model.crf import SpanCRF
from model.cross_entropy import cross_entropy, tied_token_losses
from model.encoder import Encoder
from model.extractive import ExtractiveDecoder
from model.generative import Decoder, DecoderCache
from model.hybrid import HybridLayer
from model.pointer import PointerDecoder
from model.positions import DynamicPositions
from model.recurrence import BidirectionalRecurrence
from model.rotary import make_rotation
from model.router import Router

KINDS = ("generative", "pointer")
"""The decoders that write text."""


class LanguageModelHead(nn.Module):
    """Memory → Linear → LayerNorm, before the tied output layer."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(config.d_model, config.d_model)
        self.norm = nn.LayerNorm(config.d_model)

    def forward(self, memory: Tensor) -> Tensor:
        """[…,D] → […,D]."""
        return self.norm(self.transform(memory))


class HybridModel(PreTrainedModel):
    """All parts. Rows are padded on the right; `lengths` [B] are at least 1, and None means rows without padding.

    Nothing behind a row's length, and no other row, changes a row's result; results behind it mean nothing.
    """

    config_class = HybridConfig
    config: HybridConfig
    base_model_prefix = ""
    main_input_name = "input_ids"

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = Encoder(config)
        self.hybrid = HybridLayer(config)
        self.router = Router(config)
        self.lm_head = LanguageModelHead(config)
        self.extractive = ExtractiveDecoder(config)
        self.generative = Decoder(config, config.decoder_layers)
        self.pointer = PointerDecoder(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Normal(0, 0.02) for matrices, 0 for biases, positions sinusoids; recurrences as PyTorch's, the CRF 0."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, (DynamicPositions, BidirectionalRecurrence)):
            module.reset_parameters()
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, HybridLayer):
            nn.init.zeros_(module.mix)
        elif isinstance(module, SpanCRF):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
        if isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding, which is the output layer too."""
        return self.embedding

    def forward(self, input_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Masked-token logits [B,S,V]; without `lengths` a row is what stands before its trailing pads."""
        if lengths is None:
            lengths = self.lengths_of(input_ids)
        return self.lm_logits(self.encode(input_ids, lengths))

    def lengths_of(self, input_ids: Tensor) -> Tensor:
        """What stands before each row's trailing pads, at least 1: [B,S] → int64 [B]."""
        place_S = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
        return ((input_ids != self.config.pad_token_id) * place_S).amax(1).clamp(min=1)

    def encode(self, input_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Token ids [B,S] → memory [B,S,D], which every head reads."""
        positions = self.source_positions(lengths, input_ids.shape[1])
        hidden_BSD = self.encoder(self.embedding(input_ids), lengths, positions)
        return self.hybrid(hidden_BSD, lengths, positions)

    def source_positions(self, lengths: Tensor | None, size: int) -> RowPositions:
        """Where the tokens of rows of `size` are."""
        width = self.config.d_model // self.config.num_heads
        return RowPositions(key_mask(lengths, size), make_rotation(size, width, self.device))

    def logits(self, states: Tensor) -> Tensor:
        """The tied output layer: states […,D] → […,V]."""
        return functional.linear(states, self.embedding.weight)

    def token_losses(self, states_ND: Tensor, labels_N: Tensor) -> Tensor:
        """Cross-entropy [N] of the output layer's logits of states [N,D] with labels [N]."""
        return tied_token_losses(states_ND, self.embedding.weight, labels_N)

    def task_logits(self, memory: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B,S,D] → [B,3] in the order generation, qa, summary."""
        return self.router(memory, lengths)

    def lm_logits(self, memory: Tensor) -> Tensor:
        """[…,D] → logits […,V] of the tokens that stand there."""
        return self.logits(self.lm_head(memory))

    def emissions(self, memory: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B,S,D] → scores [B,S,3] of the tags O, B, I; `extractive.crf` reads them."""
        return self.extractive(memory, lengths)

    def target_losses(self, states: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of decoder states [B,T,D] with labels [B,T], float32 [B,T]; 0 where a label is IGNORE."""
        return cross_entropy(self.token_losses, states, labels)

    def masked_token_losses(self, memory: Tensor, positions: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the tokens at positions [B,M] of the memory with labels [B,M], float32 [B,M]."""
        index_BMD = positions.long()[..., None].expand(-1, -1, memory.shape[-1])
        return cross_entropy(self.token_losses, self.lm_head(memory.gather(1, index_BMD)), labels)

    def decoder_states(self, kind: str, memory: Tensor, lengths: Tensor | None, target_ids: Tensor) -> Tensor:
        """Decoder states [B,T,D] that the given tokens [B,T] lead to; T at most max_target_positions.

        Raises ValueError for an unknown kind or a longer target.
        """
        mask = key_mask(lengths, memory.shape[1])
        return self.decoder(kind)(self.embedding(target_ids), memory, mask)

    def generative_logits(self, memory: Tensor, lengths: Tensor | None, target_ids: Tensor) -> Tensor:
        """Logits [B,T,V] of the tokens that follow `target_ids` [B,T], which begin with `<s>`."""
        return self.logits(self.decoder_states("generative", memory, lengths, target_ids))

    def pointer_log_probs(
        self, memory: Tensor, lengths: Tensor | None, source_ids: Tensor, target_ids: Tensor
    ) -> Tensor:
        """Log probabilities [B,T,V], float32, of the tokens that follow `target_ids` [B,T]; `source_ids` [B,S]."""
        states_BTD = self.decoder_states("pointer", memory, lengths, target_ids)
        copy_keys_BSD = self.pointer.copy_key(memory)
        return self.pointer.log_mixture(states_BTD, self.logits(states_BTD), copy_keys_BSD, lengths, source_ids)

    def decoder(self, kind: str) -> Decoder:
        """The decoder `generative` or `pointer`. Raises ValueError for another kind."""
        if kind not in KINDS:
            raise ValueError(f"unknown decoder {kind!r}: choose from {', '.join(KINDS)}")
        return self.generative if kind == "generative" else self.pointer

    @torch.no_grad()
    def greedy(
        self, kind: str, input_ids: Tensor, lengths: Tensor | None = None, max_new_tokens: int = 64
    ) -> list[list[int]]:
        """The most likely text of each source row, token by token on caches, without the end token.

        The reference of parity tests: simple, not fast. Call it in evaluation mode.

        Raises ValueError for an unknown kind, or more tokens than max_target_positions.
        """
        decoder, memory_BSD = self.decoder(kind), self.encode(input_ids, lengths)
        cache = decoder.prefill(memory_BSD, key_mask(lengths, memory_BSD.shape[1]), max_new_tokens)
        copy_keys_BSD = self.pointer.copy_key(memory_BSD)
        batch = len(input_ids)
        texts: list[list[int]] = [[] for _ in range(batch)]
        live = [True] * batch
        tokens_B = torch.full((batch,), self.config.bos_token_id, device=input_ids.device)
        for _ in range(max_new_tokens):
            scores_BV = self._next_scores(kind, tokens_B, cache, copy_keys_BSD, lengths, input_ids)
            tokens_B = scores_BV.argmax(-1)
            for row, token in enumerate(tokens_B.tolist()):
                live[row] = live[row] and token != self.config.eos_token_id
                if live[row]:
                    texts[row].append(token)
            if not any(live):
                break
        return texts

    def _next_scores(
        self,
        kind: str,
        tokens_B: Tensor,
        cache: DecoderCache,
        copy_keys_BSD: Tensor,
        lengths_B: Tensor | None,
        source_BS: Tensor,
    ) -> Tensor:
        """Logits, or the pointer's log probabilities, after one more token a row: [B,V]."""
        state_B1D = self.decoder(kind).step(self.embedding(tokens_B[:, None]), cache)
        logits_B1V = self.logits(state_B1D)
        if kind == "generative":
            return logits_B1V[:, 0]
        return self.pointer.log_mixture(state_B1D, logits_B1V, copy_keys_BSD, lengths_B, source_BS)[:, 0]
