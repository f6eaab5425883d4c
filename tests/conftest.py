"""Fixtures that several folders share: a nano network with random weights, its tokenizer and its bundle.

The embedding of a random network is tied to its output layer, so that greedy decoding repeats one token for every
request, and equal texts prove nothing. Here every token has a random scale of its own: texts vary with their sources.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from model.configuration import HybridConfig
from model.network import HybridModel
from model.tokenizer import save_tokenizer, train_tokenizer

# A busy machine takes its time over an example that is right, and a red run is the change's fault, not chance's:
# every run tries the same examples. `--hypothesis-profile search` tries others.
hypothesis.settings.register_profile("search", deadline=None)
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")

TEXTS = (
    "The river rises in the northern hills and runs for two hundred kilometres to the sea.",
    "When was the bridge built? It was built in 1871, near the old mill.",
    "Anna: Did you return the books? Ben: Not yet, the library was closed because of the storm.",
    "光在真空中的速度约为每秒三十万公里。天文学家用光年来表示恒星之间的距离。",
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Networks this small take a third of the time on one thread: two wait for each other, the longer the busier."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What services learn in one session of tests is nobody else's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy tokenizer of 32,000 ids, most of them unused."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(TEXTS), folder)
    return folder


@pytest.fixture(scope="session")
def nano_model() -> HybridModel:
    """A random nano network whose texts vary with their sources.

    For that a decoder's own tokens must not drown what it reads: embeddings are as small as √D makes them large, and
    what is multiplied by them at the end, or only sharpened by it, is scaled the other way.
    """
    torch.manual_seed(10)
    model = HybridModel(HybridConfig.from_preset("nano")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("hybrid.mix", "extractive.crf")):
                parameter.normal_()
            elif name in ("generative.norm.weight", "pointer.norm.weight", "lm_head.norm.weight"):
                parameter.fill_(120)
            elif name == "embedding.weight":
                parameter.mul_(torch.exp(0.3 * torch.randn(len(parameter), 1)) / 8)
            elif "positions.table" in name:
                parameter.mul_(0.1)
            elif name in ("pointer.gate.weight", "pointer.copy_query.weight"):
                parameter.mul_(5 / 8)
            elif "norm" not in name and "recurrence" not in name:
                parameter.mul_(5)
    return model


@pytest.fixture(scope="session")
def nano_bundle(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path, nano_model: HybridModel) -> Path:
    """A float32 bundle of a random nano network."""
    from deploy.bundle.export import export_bundle

    folder = tmp_path_factory.mktemp("bundles") / "nano"
    export_bundle(nano_model, tokenizer_folder, folder)
    return folder
