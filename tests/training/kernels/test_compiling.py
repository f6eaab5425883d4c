"""Compiled training: real batches, whose label counts vary, meet two sizes of token losses; a limit is an error."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import config as dynamo
from torch._dynamo import lookup_backend
from torch._dynamo.exc import FailOnRecompileLimitHit

import model.cross_entropy
import training.kernels.compiled
from model.configuration import HybridConfig
from model.cross_entropy import IGNORE
from model.network import HybridModel
from training.config import Recipe
from training.engines.engine import Engine
from training.engines.making import make_engine
from training.kernels.compiled import compile_layers, refusing_to_fall_back
from training.parallel.mesh import Mesh
from training.train import load_batches, train

CHUNK, PIECE = 32, 8
STEPS = 4


class LabelSizes:
    """A backend that notes how many labels each graph of token losses is for, and computes as PyTorch does."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.found: list[int] = []
        self.compile = lookup_backend("aot_eager")

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable:
        shapes = [tuple(each.shape) for each in inputs if isinstance(each, Tensor)]
        if any(len(shape) == 2 and shape[0] == self.vocabulary for shape in shapes):
            self.found += [shape[0] for shape in shapes if len(shape) == 1]
        return self.compile(graph, inputs)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """So small that the losses of a tiny batch have whole chunks and remainders; no graphs of another test's."""
    monkeypatch.setattr(model.cross_entropy, "CHUNK", CHUNK)
    monkeypatch.setattr(training.kernels.compiled, "PIECE", PIECE)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def mixed(recipe: Recipe) -> Recipe:
    """Every other step has few long rows; no dropout, whose numbers a compiler draws in another order."""
    recipe.model.overrides = {"dropout": 0.0}
    recipe.long.every, recipe.long.rows = 2, 2
    recipe.long.source_tokens, recipe.long.target_tokens = 160, 32
    return recipe


def steps_of(engine: Engine, recipe: Recipe) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Losses and gradients of the run's first batches."""
    for _, batch in zip(range(STEPS), load_batches(recipe, Mesh(), 0), strict=False):
        losses = engine.forward_backward(batch)
        yield losses, {name: each.grad.clone() for name, each in engine.parameters.items() if each.grad is not None}
        engine.stage.network.zero_grad()


def test_real_batches_are_computed_as_without_a_compiler_in_two_sizes_of_labels(mixed: Recipe) -> None:
    plain = list(steps_of(make_engine(mixed, Mesh(), torch.float32), mixed))
    engine = make_engine(mixed, Mesh(), torch.float32)
    sizes = LabelSizes(engine.stage.network.config.vocab_size)
    compile_layers(engine.stage.network, backend=sizes)
    with refusing_to_fall_back():
        compiled = list(steps_of(engine, mixed))
    for (losses, gradients), (expected, expected_gradients) in zip(compiled, plain, strict=True):
        torch.testing.assert_close(losses, expected)
        assert gradients.keys() == expected_gradients.keys()
        for name, gradient in expected_gradients.items():
            assert (gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name
    assert set(sizes.found) == {CHUNK, PIECE}


@pytest.mark.parametrize("count", [0, 1, PIECE, PIECE + 1, CHUNK - 1, CHUNK])
def test_any_number_of_labels_comes_in_pieces_of_two_sizes(count: int) -> None:
    network = HybridModel(HybridConfig.from_preset("nano"))
    chance = torch.Generator().manual_seed(count)
    states_ND = torch.randn(count, network.config.d_model, generator=chance, requires_grad=True)
    labels_N = torch.randint(16, network.config.vocab_size, (count,), generator=chance)
    labels_N[count // 2 :: 3] = IGNORE
    expected = network.token_losses(states_ND, labels_N)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), states_ND)
    sizes = LabelSizes(network.config.vocab_size)
    compile_layers(network, backend=sizes)
    found = network.token_losses(states_ND, labels_N)
    (gradient,) = torch.autograd.grad(found.sum(), states_ND)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    assert set(sizes.found) <= {CHUNK, PIECE}


def test_a_run_that_needs_more_graphs_than_are_kept_ends_and_says_so(
    mixed: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.kernels.compiled, "MOST_GRAPHS", 1)
    engine = make_engine(mixed, Mesh(), torch.float32)
    compile_layers(engine.stage.network, backend="aot_eager")
    with (
        pytest.raises(ValueError, match=r"run\.compile: .* more than 1 .*; set run\.compile = false"),
        refusing_to_fall_back(),
    ):
        list(steps_of(engine, mixed))
    assert not dynamo.fail_on_recompile_limit_hit


def test_token_losses_never_run_uncompiled_in_a_backward_thread(recipe: Recipe) -> None:
    """PyTorch's settings belong to a thread, and a GPU's backward pass has its own, with the settings of the start."""
    network = HybridModel(HybridConfig.from_preset("nano"))
    compile_layers(network, backend="aot_eager")
    compiled = network.token_losses.compiled  # type: ignore[attr-defined]
    faults: list[BaseException] = []

    def more_sizes_than_are_kept() -> None:
        try:
            for count in range(2, dynamo.recompile_limit + 3):
                labels_N = torch.full((count,), 99)
                compiled(torch.zeros(count, network.config.d_model), network.embedding.weight, labels_N)
        except FailOnRecompileLimitHit as error:
            faults.append(error)

    with refusing_to_fall_back():
        thread = threading.Thread(target=more_sizes_than_are_kept)
        thread.start()
        thread.join()
    assert len(faults) == 1


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_of_one_that_is_not(mixed: Recipe, tmp_path: Path) -> None:
    mixed.schedule.max_steps = 24
    found = []
    for name, is_compiled in (("plain", False), ("compiled", True)):
        mixed.run.output, mixed.run.compile = tmp_path / name, is_compiled
        train(mixed)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        found.append([json.loads(line)["loss"] for line in lines])
    assert len(found[0]) == 24
    assert found[1] == pytest.approx(found[0], abs=2e-2)
