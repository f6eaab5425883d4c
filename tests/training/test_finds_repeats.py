"""An encoder under the trainer's optimizer learns to tell neighbours and to find what was said before.

Rows of random tokens, a part of which stands in them twice; of the second one some tokens are masked. Which ones can
be told only by who looks for the same neighbours further ahead: heads that read the token beside, and heads that read
on where it stood. What answers questions needs no less, and the first networks were far behind: their queries and keys
were not turned by their place, positions began as random vectors, and queries, keys and values shared an update
(docs/results/finds-repeats.json).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.attention import RowPositions
from model.configuration import HybridConfig
from model.losses import masked_token_loss
from model.network import HybridModel
from model.rotary import Rotation
from model.tokenizer import MASK, QA, SPECIAL_TOKENS
from training.config import OptimizerSection
from training.muon import Muon
from training.optimizer import Optimizers

TOKENS, ROWS, SIZE, MASKED, WARM_UP = 48, 32, 64, 12, 100
VARIANTS: list[dict[str, bool]] = [
    {},
    {"rotary": False},
    {"sinusoids": False},
    {"apart": False},
    {"rotary": False, "sinusoids": False, "apart": False},
]


def make_batch(chance: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sources, positions of masked tokens, and what stood there."""
    first = len(SPECIAL_TOKENS)
    source = chance.integers(first, first + TOKENS, (ROWS, SIZE))
    positions = np.zeros((ROWS, MASKED), dtype=np.int64)
    for row, place in zip(source, positions, strict=True):
        size = int(chance.integers(24, SIZE // 2))
        begin = size + int(chance.integers(0, SIZE - 2 * size + 1))
        row[begin : begin + size] = row[:size]
        place[:] = begin + np.sort(chance.permutation(size)[:MASKED])
    labels = np.take_along_axis(source, positions, 1)
    np.put_along_axis(source, positions, MASK, 1)
    source = np.concatenate([np.full((ROWS, 1), QA), source], 1)
    return torch.from_numpy(source), torch.from_numpy(positions + 1), torch.from_numpy(labels)


def losses_of_run(
    *, rotary: bool = True, sinusoids: bool = True, apart: bool = True, steps: int = 1200, seed: int = 0
) -> list[float]:
    """Of every step, nats a masked token; ln 48 = 3.9 for who finds nothing.

    Args:
        rotary: whether queries and keys are turned by their place.
        sinusoids: whether positions begin so, or as random vectors as small as embeddings.
        apart: whether queries, keys and values are updated each for itself, or together.
        steps: of the optimizer.
        seed: of weights and rows.
    """
    torch.manual_seed(seed)
    config = HybridConfig.from_preset(
        "nano", vocab_size=TOKENS + len(SPECIAL_TOKENS), hybrid_units=1, recurrent_block=None, dropout=0.0
    )
    network = HybridModel(config).train()
    if not rotary:
        leave_unturned(network)
    if not sinusoids:
        torch.nn.init.normal_(network.encoder.positions.table, std=0.02)
    optimizers = Optimizers(network, OptimizerSection(), fused=False)
    if not apart:
        (muon,) = (each for each in optimizers.optimizers if isinstance(each, Muon))
        muon.stacked = {}
    chance = np.random.default_rng(seed)
    losses = []
    for step in range(steps):
        source, positions, labels = make_batch(chance)
        loss = masked_token_loss(network, network.encode(source), positions, labels)
        loss.backward()
        optimizers.step(min(1.0, (step + 1) / WARM_UP))
        losses.append(float(loss.detach()))
    return losses


def leave_unturned(network: HybridModel) -> None:
    """Angles of 0 at every place."""
    own = network.source_positions

    def positions(lengths: torch.Tensor | None, size: int) -> RowPositions:
        found = own(lengths, size)
        cosine, sine = found.rotation
        return found._replace(rotation=Rotation(torch.ones_like(cosine), torch.zeros_like(sine)))

    vars(network)["source_positions"] = positions


def write_results(output: Path) -> None:
    """Every 50 steps' mean loss of all variants."""
    runs = [{**variant, "losses": np.reshape(losses_of_run(**variant), (-1, 50)).mean(1)} for variant in VARIANTS]
    for run in runs:
        run["losses"] = run["losses"].round(3).tolist()
    output.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


@pytest.mark.slow
def test_repeats_are_found_and_were_not_by_the_first_networks() -> None:
    now, then = (np.mean(losses_of_run(**variant)[-50:]) for variant in (VARIANTS[0], VARIANTS[-1]))
    assert now < 1.3
    assert now < 0.7 * then
