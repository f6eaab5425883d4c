"""An encoder under the trainer's optimizer learns to tell neighbours and to find what was said before.

Rows of random tokens, a part of which stands in them twice; of the second one some tokens are masked. Which ones can
be told only by who looks for the same neighbours further ahead: heads that read the token beside, and heads that read
on where it stood. What answers questions needs no less, and a network that begins with random positions, or whose
queries and keys share an update with the values, is far behind (docs/results/finds-repeats.json).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.configuration import HybridConfig
from model.losses import masked_token_loss
from model.network import HybridModel
from model.tokenizer import MASK, QA, SPECIAL_TOKENS
from training.config import OptimizerSection
from training.muon import Muon
from training.optimizer import Optimizers

TOKENS, ROWS, SIZE, MASKED, WARM_UP = 48, 32, 64, 12, 100


def make_batch(chance: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sources, places of masked tokens, and what stood there."""
    first = len(SPECIAL_TOKENS)
    source = chance.integers(first, first + TOKENS, (ROWS, SIZE))
    places = np.zeros((ROWS, MASKED), dtype=np.int64)
    for row, place in zip(source, places, strict=True):
        size = int(chance.integers(24, SIZE // 2))
        begin = size + int(chance.integers(0, SIZE - 2 * size + 1))
        row[begin : begin + size] = row[:size]
        place[:] = begin + np.sort(chance.permutation(size)[:MASKED])
    labels = np.take_along_axis(source, places, 1)
    np.put_along_axis(source, places, MASK, 1)
    source = np.concatenate([np.full((ROWS, 1), QA), source], 1)
    return torch.from_numpy(source), torch.from_numpy(places + 1), torch.from_numpy(labels)


def losses_of_run(*, sinusoids: bool, apart: bool, steps: int = 1200, seed: int = 0) -> list[float]:
    """Of every step, nats a masked token; ln 48 = 3.9 for who finds nothing.

    Args:
        sinusoids: whether positions begin so, as they do, or as random vectors.
        apart: whether queries, keys and values are updated each for itself, as they are, or together.
        steps: of the optimizer.
        seed: of weights and rows.
    """
    torch.manual_seed(seed)
    config = HybridConfig.from_preset(
        "nano", vocab_size=TOKENS + len(SPECIAL_TOKENS), hybrid_units=1, recurrent_block=None, dropout=0.0
    )
    network = HybridModel(config).train()
    if not sinusoids:
        torch.nn.init.normal_(network.encoder.positions.table, std=0.02)
    optimizers = Optimizers(network, OptimizerSection(), fused=False)
    if not apart:
        (muon,) = (each for each in optimizers.optimizers if isinstance(each, Muon))
        muon.parts = {}
    chance = np.random.default_rng(seed)
    losses = []
    for step in range(steps):
        source, places, labels = make_batch(chance)
        loss = masked_token_loss(network, network.encode(source), places, labels)
        loss.backward()
        optimizers.step(min(1.0, (step + 1) / WARM_UP))
        losses.append(float(loss.detach()))
    return losses


def write_results(output: Path) -> None:
    """Every 50 steps' mean loss with and without either, on two seeds."""
    runs = [
        {
            "sinusoids": sinusoids,
            "apart": apart,
            "seed": seed,
            "losses": losses_of_run(sinusoids=sinusoids, apart=apart, seed=seed),
        }
        for sinusoids in (True, False)
        for apart in (True, False)
        for seed in (0, 1)
    ]
    for run in runs:
        run["losses"] = np.reshape(run["losses"], (-1, 50)).mean(1).round(3).tolist()
    output.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


@pytest.mark.slow
def test_repeats_are_found_sooner_than_without_either() -> None:
    ends = {
        (sinusoids, apart): np.mean(losses_of_run(sinusoids=sinusoids, apart=apart)[-50:])
        for sinusoids in (True, False)
        for apart in (True, False)
    }
    best = ends.pop((True, True))
    assert best < 1.6
    assert best < 0.85 * min(ends.values())
