"""What the forward pass keeps, against the storages that autograd really holds, for all heads on real networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from model.configuration import HybridConfig
from model.cross_entropy import CHUNK
from model.losses import continuation_loss, masked_token_loss, router_loss, span_loss, summary_loss
from model.network import HybridModel
from training.planning.activations import LOSS_CHUNK, block_activations, memory_values
from training.planning.workload import Network, Work

TARGET, SUMMARY, GUESSES = 24, 20, 10


@pytest.fixture(autouse=True)
def own_recurrences() -> Iterator[None]:
    """PyTorch's own LSTM, not oneDNN's, which keeps a workspace of its own layout."""
    before = torch.backends.mkldnn.enabled
    torch._C._set_mkldnn_enabled(False)
    yield
    torch._C._set_mkldnn_enabled(before)


class Held:
    """Storages that autograd keeps, each counted once; parameters and what was kept before are not."""

    def __init__(self, model: HybridModel) -> None:
        self.known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._alive: list[Tensor] = []

    def bytes_of(self, run: Callable[[], Tensor]) -> tuple[int, Tensor]:
        """What `run` adds, and its result, which is known from then on."""
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.known:
                sizes[storage.data_ptr()] = storage.nbytes()
                self._alive.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = run()
        self._alive.append(result)
        self.known |= {*sizes, result.untyped_storage().data_ptr()}
        return sum(sizes.values()), result


def test_the_chunk_of_logits_is_the_losses_own() -> None:
    assert LOSS_CHUNK == CHUNK


@pytest.mark.parametrize(("preset", "source"), [("nano", 64), ("nano", 50), ("nano", 12), ("student", 160)])
def test_activations_are_those_that_autograd_keeps(preset: str, source: int) -> None:
    """Within 1 %, part by part; the router keeps a few vectors a row, and there 15 % are a few hundred bytes."""
    torch.manual_seed(0)
    config = HybridConfig.from_preset(preset)
    model, network, rows = HybridModel(config), Network.of(config), 4
    work = Work(
        rows=rows,
        source_tokens=source,
        written_rows=2,
        target_tokens=TARGET,
        asked_rows=1,
        summed_rows=1,
        summary_tokens=SUMMARY,
        guesses=2 * GUESSES,
    )

    def expected(*kinds: str) -> float:
        parts = [block_activations(network, work, kind) for kind in kinds]
        # On the CPU a dropout mask is a tensor of floats.
        return sum(part.kept_bytes(1, 1, 4, mask_bytes=4) + part.logits_bytes(1, 1) for part in parts)

    def random(*shape: int) -> Tensor:
        return torch.randint(16, 1000, shape)

    held, source_BS, lengths_B = Held(model), random(rows, source), torch.full((rows,), source)
    encoded, memory_BSD = held.bytes_of(lambda: model.encode(source_BS, lengths_B))
    layers = ["encoder layer"] * config.encoder_layers
    assert encoded + 4 * memory_values(network, work) == pytest.approx(
        expected("embedding", *layers, "hybrid layer"), rel=0.01
    )
    written, asked, summed = slice(0, 2), slice(2, 3), slice(3, 4)
    positions_BM = torch.randint(0, source, (2, GUESSES))
    kept, _ = held.bytes_of(lambda: masked_token_loss(model, memory_BSD[written], positions_BM, random(2, GUESSES)))
    assert kept == pytest.approx(expected("masked head"), rel=0.01)
    context_B2, answer_B2 = torch.tensor([[3, source]]), torch.tensor([[5, 7]])
    kept, _ = held.bytes_of(lambda: span_loss(model, memory_BSD[asked], lengths_B[asked], context_B2, answer_B2))
    assert kept == pytest.approx(expected("span head"), rel=0.01)
    kept, _ = held.bytes_of(
        lambda: continuation_loss(model, memory_BSD[written], lengths_B[written], random(2, TARGET))
    )
    layers = ["writer layer"] * config.decoder_layers
    assert kept == pytest.approx(expected("writer embedding", *layers, "writer head"), rel=0.01)
    kept, _ = held.bytes_of(
        lambda: summary_loss(model, memory_BSD[summed], lengths_B[summed], source_BS[summed], random(1, SUMMARY))
    )
    layers = ["pointer layer"] * config.pointer_layers
    assert kept == pytest.approx(expected("pointer embedding", *layers, "pointer head"), rel=0.01)
    kept, _ = held.bytes_of(lambda: router_loss(model, memory_BSD, lengths_B, torch.randint(0, 3, (rows,))))
    assert kept == pytest.approx(expected("router"), rel=0.15)
