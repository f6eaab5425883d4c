"""A nano network whose every part shows in its results: spread embeddings, mixed shares, trained-like CRF scores."""

from __future__ import annotations

import pytest
import torch

from model.configuration import HybridConfig
from model.network import HybridModel


@pytest.fixture(scope="session")
def network() -> HybridModel:
    torch.manual_seed(0)
    model = HybridModel(HybridConfig.from_preset("nano")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("hybrid.mix", "extractive.crf")):
                parameter.normal_()
            elif name == "embedding.weight" or "positions.table" in name:
                parameter.mul_(0.5)  # √D makes the one large, and the other begins so
            elif "norm" not in name and "recurrence" not in name:
                parameter.mul_(5)
    return model
