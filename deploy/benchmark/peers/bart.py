"""A BART of the student's shape with random weights: what libraries that know only usual networks can decode.

It has the student's width, layers, heads and vocabulary, and neither its hybrid layer nor its grouped key and value
heads. How fast it decodes does not depend on its weights.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import BartConfig, BartForConditionalGeneration

from deploy.benchmark.peers.decoding import VOCABULARY
from model.configuration import HybridConfig

POSITIONS = 2048
OLD_FIELDS: dict[str, Any] = {"normalize_before": False, "normalize_embedding": True}
"""Of older configurations: CTranslate2's converter reads them, and transformers no longer knows them."""


def make_bart(seed: int = 0) -> BartForConditionalGeneration:
    """In evaluation mode, float32."""
    torch.manual_seed(seed)
    student = HybridConfig.from_preset("student")
    config = BartConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        d_model=student.d_model,
        encoder_layers=student.encoder_layers,
        encoder_ffn_dim=student.encoder_ffn,
        encoder_attention_heads=student.num_heads,
        decoder_layers=student.decoder_layers,
        decoder_ffn_dim=student.decoder_ffn,
        decoder_attention_heads=student.num_heads,
        forced_eos_token_id=None,
        **OLD_FIELDS,
    )
    return BartForConditionalGeneration(config).eval()
