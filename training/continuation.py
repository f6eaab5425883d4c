"""Bits per byte: how well trained weights foresee what documents say, which no service tells."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

import torch

from model.losses import IGNORE, cross_entropy, shift_right
from model.network import HybridModel
from model.tokenizer import GENERATION, encode, load_tokenizer
from training.data.readers import read_records
from training.evaluate import Figures, require, tracked
from training.network_predictor import on_device

PROMPT_TOKENS, CONTINUATION_TOKENS = 192, 192
"""A document is continued once, after its first tokens."""


@torch.inference_mode()
def evaluate_continuation(weights: tuple[HybridModel, Path], data: Path, limit: int | None) -> Figures:
    """Bits per byte of each document's continuation after its first tokens, under the generative decoder."""
    model, folder = on_device(weights[0]), weights[1]
    tokenizer = load_tokenizer(folder)
    documents = [record["text"] for record in islice(read_records(data, "text"), limit)]
    require(documents, data)
    nats, size = 0.0, 0
    for text in tracked(iter(documents), len(documents)):
        ids = encode(tokenizer, text)
        target = ids[PROMPT_TOKENS : PROMPT_TOKENS + CONTINUATION_TOKENS]
        if not target:
            continue
        source_BS = torch.tensor([[GENERATION, *ids[:PROMPT_TOKENS]]], device=model.device)
        labels_BT = torch.tensor([target], device=model.device)
        memory_BSD = model.encode(source_BS)
        states_BTD = model.decoder_states("generative", memory_BSD, None, shift_right(model, labels_BT))
        nats += float(cross_entropy(model, states_BTD, labels_BT)[labels_BT != IGNORE].sum())
        size += len(tokenizer.decode(target, skip_special_tokens=False).encode())
    if not size:
        raise ValueError(f"{data} has no document of more than {PROMPT_TOKENS} tokens")
    return {"documents": len(documents), "bytes": size, "bits_per_byte": nats / size / math.log(2)}
