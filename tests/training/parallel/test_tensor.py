"""Tensor parallelism: a parameter's parts are the whole again, and two processes compute what one does."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from model.configuration import HybridConfig
from model.cross_entropy import IGNORE
from model.network import HybridModel
from tests.training.parallel.ranks import on_ranks
from training.layout import Layout
from training.parallel.mesh import Mesh, make_mesh
from training.parallel.tensor import Cut, apply_tensor_parallel, cuts_of

SIZE = 2


@given(
    dimension=st.integers(0, 1),
    blocks=st.integers(1, 3),
    size=st.integers(1, 4),
    inner=st.integers(1, 3),
    data=st.data(),
)
def test_the_parts_are_the_whole_again(dimension: int, blocks: int, size: int, inner: int, data: st.DataObject) -> None:
    shape = [3, 3]
    shape[dimension] = blocks * size * inner
    whole = torch.randn(shape)
    cut = Cut(dimension, blocks)
    parts = [cut.part(whole, rank, size) for rank in range(size)]
    assert torch.equal(cut.whole(parts), whole)
    block = data.draw(st.integers(0, blocks - 1))
    rank = data.draw(st.integers(0, size - 1))
    first = parts[rank].narrow(dimension, block * inner, inner)
    assert torch.equal(first, whole.narrow(dimension, (block * size + rank) * inner, inner))


@given(
    shares=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    size=st.integers(1, 4),
    dimension=st.integers(0, 1),
)
def test_parts_of_unequal_blocks_are_the_whole_again(shares: list[int], size: int, dimension: int) -> None:
    """Queries, keys and values of grouped heads: each process has its share of each."""
    shape = [2, 2]
    shape[dimension] = size * sum(shares)
    whole = torch.randn(shape)
    cut = Cut(dimension, tuple(shares))
    parts = [cut.part(whole, rank, size) for rank in range(size)]
    assert torch.equal(cut.whole(parts), whole)
    own = [block.chunk(size, dimension)[-1] for block in whole.split([each * size for each in shares], dimension)]
    assert torch.equal(parts[-1], torch.cat(own, dimension))


def test_attention_feed_forward_and_embedding_are_divided_and_nothing_else() -> None:
    network = HybridModel(HybridConfig.from_preset("nano"))
    cuts = cuts_of(network)
    divided = ("attention.qkv", "attention.q.", "attention.kv", "attention.out", "feed_forward.up", "down.weight")
    for name, _ in network.named_parameters():
        inside = name == "embedding.weight" or any(part in name for part in divided)
        assert (name in cuts) == inside, name


def test_two_processes_have_the_losses_and_gradients_of_one() -> None:
    on_ranks(SIZE, _compare)


def test_grouped_heads_have_the_losses_and_gradients_of_one_process() -> None:
    on_ranks(SIZE, _compare_grouped)


def _compare_grouped() -> None:
    """Two key and value heads are shared evenly by two processes; three are not: each has queries of both halves."""
    mesh = make_mesh(Layout(tensor=SIZE), torch.device("cpu"))
    for shape in ({"num_heads": 8, "num_kv_heads": 4}, {"num_heads": 12, "num_kv_heads": 3, "d_model": 96}):
        fields: dict[str, Any] = {**shape, "decoder_layers": 3, "dropout": 0.0, "vocab_size": 512}
        torch.manual_seed(0)
        whole = HybridModel(HybridConfig.from_preset("nano", **fields))
        part = HybridModel(whole.config)
        part.load_state_dict(whole.state_dict())
        cuts = cuts_of(whole, SIZE)
        kv_divided = shape["num_kv_heads"] % SIZE == 0
        assert ("generative.layers.0.cross_attention.kv.weight" in cuts) == kv_divided
        apply_tensor_parallel(part, mesh.tensor)
        memory_BSD, written_BT = torch.randn(3, 20, whole.config.d_model), torch.randint(5, 512, (3, 7))
        states = []
        for network in (whole, part):
            states.append(network.decoder_states("generative", memory_BSD, torch.tensor([20, 11, 5]), written_BT))
            states[-1].square().sum().backward()
        torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-5)
        for (name, own), expected in zip(part.named_parameters(), whole.parameters(), strict=True):
            if expected.grad is not None and own.grad is not None:
                gradient = cuts[name].part(expected.grad, mesh.rank, SIZE) if name in cuts else expected.grad
                assert torch.allclose(own.grad, gradient, rtol=1e-3, atol=1e-3), f"{shape} {name}"


def _compare() -> None:
    """One process of two: its part against the whole network."""
    mesh = make_mesh(Layout(tensor=SIZE), torch.device("cpu"))
    _compare_losses(mesh)


def _compare_losses(mesh: Mesh) -> None:
    """Of states of the encoder."""
    config = HybridConfig.from_preset("nano", dropout=0.0, vocab_size=512)
    torch.manual_seed(0)
    whole = HybridModel(config)
    part = HybridModel(config)
    part.load_state_dict(whole.state_dict())
    cuts = cuts_of(whole)
    apply_tensor_parallel(part, mesh.tensor)

    source_BS = torch.randint(5, 512, (3, 20))
    labels_N = torch.randint(5, 512, (60,))
    labels_N[::7] = IGNORE
    losses = []
    for network in (whole, part):
        states_ND = network.encode(source_BS, torch.tensor([20, 11, 5])).flatten(0, 1)
        losses.append(network.token_losses(states_ND, labels_N))
        losses[-1].sum().backward()
    torch.testing.assert_close(losses[1], losses[0])
    logits = whole.logits(whole.encode(source_BS)).flatten(0, 1)
    plain = functional.cross_entropy(logits, labels_N, reduction="none", ignore_index=IGNORE)
    unpadded = whole.token_losses(whole.encode(source_BS).flatten(0, 1), labels_N)
    torch.testing.assert_close(unpadded, plain)
    for (name, own), expected in zip(part.named_parameters(), whole.parameters(), strict=True):
        if expected.grad is None:
            assert own.grad is None
            continue
        gradient = cuts[name].part(expected.grad, mesh.rank, SIZE) if name in cuts else expected.grad
        torch.testing.assert_close(
            own.grad, gradient, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
