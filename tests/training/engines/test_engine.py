"""The single process' engine: parts, recomputed layers and lower precisions change no step beyond rounding."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from training.config import Recipe
from training.engines.engine import Engine
from training.engines.making import make_engine, pick_dtype
from training.parallel.mesh import Mesh, Ring
from training.train import load_batches


@pytest.fixture
def even(recipe: Recipe) -> Recipe:
    """Two rows of every kind, AdamW, no dropout."""
    for name in ("pretraining_rows", "instruction_rows", "qa_rows", "summary_rows"):
        setattr(recipe.batch, name, 2)
    recipe.optimizer.kind = "adamw"
    recipe.model.overrides = {"dropout": 0.0}
    return recipe


def engine_of(recipe: Recipe, dtype: torch.dtype = torch.float32) -> Engine:
    return make_engine(recipe, Mesh(), dtype)


def gradients_of(engine: Engine, recipe: Recipe, step: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses and gradients of a step's batch."""
    losses = engine.forward_backward(next(iter(load_batches(recipe, Mesh(), step))))
    return losses, {name: each.grad.clone() for name, each in engine.parameters.items() if each.grad is not None}


def test_micro_batches_have_the_gradient_of_the_batch(even: Recipe) -> None:
    expected, whole = gradients_of(engine_of(even), even)
    divided = dataclasses.replace(even, batch=dataclasses.replace(even.batch, micro_batches=2))
    found, parts = gradients_of(engine_of(divided), divided)
    torch.testing.assert_close(found, expected)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_recomputed_layers_have_the_same_gradient_to_the_bit(even: Recipe, dropout: float) -> None:
    even.model.overrides = {"dropout": dropout}
    _, expected = gradients_of(engine_of(even), even)
    even.memory.activation_checkpointing = True
    _, found = gradients_of(engine_of(even), even)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_recomputed_layers_keep_less(even: Recipe) -> None:
    kept = []
    for recomputes in (False, True):
        even.memory.activation_checkpointing = recomputes
        engine = engine_of(even)
        batch = next(iter(load_batches(even, Mesh(), 0)))
        sizes = {}

        def note(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            losses = engine.run(batch.micro_batches[0])  # held, or what is freed lends its address to what comes
        weights = {each.untyped_storage().data_ptr() for each in engine.parameters.values()}
        kept.append(sum(size for place, size in sizes.items() if place not in weights))
        del losses
    assert kept[1] < 0.8 * kept[0]


def test_dropout_is_a_function_of_the_step_and_the_part(even: Recipe) -> None:
    even.model.overrides = {"dropout": 0.3}
    engine = engine_of(even)
    first, _ = gradients_of(engine, even)
    torch.manual_seed(99)
    again, _ = gradients_of(engine, even)
    assert torch.equal(first, again)
    part = next(iter(load_batches(even, Mesh(), 0))).micro_batches[0]
    draws = []
    for step, number in ((0, 0), (0, 1), (1, 0)):
        engine.seed_dropout(step, number)
        draws.append(engine.run(part)[0].detach())
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def drawn(engine: Engine, step: int, number: int) -> tuple[int, ...]:
    """What tells one place's dropout from another's."""
    engine.seed_dropout(step, number)
    return tuple(torch.randint(1 << 62, (2,)).tolist())


def test_every_part_of_every_step_drops_its_own_however_many_there_are(even: Recipe) -> None:
    """Of 8,192 parts a step, on sixty-five stages of as many slices too."""
    even.batch.micro_batches = 8_192
    engine = engine_of(even)
    places = [(step, number) for step in range(3) for number in (0, 1, 4_095, 4_096, 8_191)]
    assert len({drawn(engine, *place) for place in places}) == len(places)
    ranks = [
        Mesh(pipeline=Ring(rank=p, size=65), sequence=Ring(rank=s, size=65)) for p in (0, 1, 64) for s in (0, 1, 64)
    ]
    found = set()
    for engine.mesh in ranks:
        found |= {drawn(engine, step, number) for step, number in ((0, 0), (0, 1), (1, 0))}
    assert len(found) == 3 * len(ranks)


def test_dropout_is_the_same_however_processes_share_the_parts_and_on_all_of_a_tensor_ring(even: Recipe) -> None:
    alone, shared = engine_of(even), engine_of(even)
    alone.recipe = dataclasses.replace(even, batch=dataclasses.replace(even.batch, micro_batches=8))
    shared.recipe = dataclasses.replace(even, batch=dataclasses.replace(even.batch, micro_batches=2))
    for part in range(8):
        shared.mesh = Mesh(data=Ring(rank=part // 2, size=4), tensor=Ring(rank=part % 2, size=2))
        assert drawn(shared, 7, part % 2) == drawn(alone, 7, part)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precisions_are_near_and_keep_fp32_weights(even: Recipe, dtype: torch.dtype) -> None:
    expected, _ = gradients_of(engine_of(even), even)
    engine = engine_of(even, dtype)
    found, _ = gradients_of(engine, even)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    assert not torch.equal(found, expected)
    assert all(each.dtype == torch.float32 for each in engine.parameters.values())


def test_an_fp16_step_that_overflows_is_left_out_and_the_scale_halved(even: Recipe) -> None:
    engine = engine_of(even, torch.float16)
    gradients_of(engine, even)
    scale = engine.loss_scale
    assert scale > 1
    before = {name: each.detach().clone() for name, each in engine.parameters.items()}
    next(iter(engine.parameters.values())).grad[0] = float("inf")  # type: ignore[index]
    engine.step(1.0)
    assert engine.loss_scale == scale / 2
    assert all(torch.equal(each, before[name]) for name, each in engine.parameters.items())
    for _ in range(8):  # until the scale is low enough
        gradients_of(engine, even)
        engine.step(1.0)
    assert not torch.equal(engine.parameters["embedding.weight"], before["embedding.weight"])
    assert all(torch.isfinite(each).all() for each in engine.parameters.values())


def test_lower_precisions_are_for_cuda() -> None:
    assert pick_dtype("bf16", torch.device("cpu")) == torch.float32
    assert pick_dtype("bf16", torch.device("cuda")) == torch.bfloat16
    assert pick_dtype("fp16", torch.device("cuda")) == torch.float16
    assert pick_dtype("fp32", torch.device("cuda")) == torch.float32
