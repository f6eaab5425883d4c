"""The extractive decoder: a BiLSTM scores every token as O, B or I, and a CRF finds the span."""

from __future__ import annotations

from torch import Tensor, nn

from model.configuration import HybridConfig
from model.crf import TAGS, SpanCRF
from model.recurrence import BidirectionalRecurrence


class ExtractiveDecoder(nn.Module):
    """Memory → BiLSTM, residual, LayerNorm → emissions; `crf` reads those."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        width = config.d_model
        self.recurrence = BidirectionalRecurrence(
            "LSTM", width, width // 2, block=config.recurrent_block, halo=config.recurrent_halo
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, TAGS)
        self.dropout = nn.Dropout(config.dropout)
        self.crf = SpanCRF(config.max_answer_tokens)

    def forward(self, memory_BSD: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """[B,S,D] → emissions [B,S,3]."""
        recurred_BSD = self.dropout(self.recurrence(memory_BSD, lengths_B))
        return self.output(self.norm(memory_BSD + recurred_BSD))
