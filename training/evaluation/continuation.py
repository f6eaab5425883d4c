"""Bits per byte: how well trained weights foresee what documents say, which no service tells."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from model.cross_entropy import IGNORE
from model.losses import shift_right
from model.network import HybridModel
from model.tokenizer import GENERATION, encode, load_tokenizer
from training.data.readers import read_records
from training.evaluation.evaluate import Figures, require, tracked
from training.evaluation.network_predictor import BATCH, batched, on_device

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
    for batch in batched(tracked(iter(documents), len(documents)), BATCH):
        rows = [ids for ids in (encode(tokenizer, text) for text in batch) if len(ids) > PROMPT_TOKENS]
        if not rows:
            continue
        targets = [ids[PROMPT_TOKENS : PROMPT_TOKENS + CONTINUATION_TOKENS] for ids in rows]
        source_BS = torch.tensor([[GENERATION, *ids[:PROMPT_TOKENS]] for ids in rows], device=model.device)
        labels_BT = pad_sequence([torch.tensor(target) for target in targets], True, IGNORE).to(model.device)
        states_BTD = model.decoder_states("generative", model.encode(source_BS), None, shift_right(model, labels_BT))
        nats += float(model.target_losses(states_BTD, labels_BT).sum())
        size += sum(len(tokenizer.decode(target, skip_special_tokens=False).encode()) for target in targets)
    if not size:
        raise ValueError(f"{data} has no document of more than {PROMPT_TOKENS} tokens")
    return {"documents": len(documents), "bytes": size, "bits_per_byte": nats / size / math.log(2)}
