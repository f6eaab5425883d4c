"""Sequence-block parallelism: what a group of processes computes on slices of rows is what one process computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.parallel import sequence_ranks as ranks
from tests.training.parallel.ranks import on_ranks
from training.config import ObjectivesSection, Recipe
from training.data.batches import Batch, Batches
from training.objectives.losses import compute_losses
from training.parallel.link import Link
from training.parallel.sequence import apply_sequence_parallel
from training.turns import run, together

WIDTH = 128
LENGTHS = [128, 5, 65, 64, 30, 127, 70, 12, 100]
"""Of two slices of 64: full rows, rows wholly in the first slice, rows that end at a border or beside it."""
SOME_LENGTHS = [128, 20, 90]
LARGEST_LOSS_DIFFERENCE = 1e-5
SHORT = [40, 5, 60, 64, 30, 33, 50, 12, 20]
"""Rows that leave the second slice nothing but padding."""
GRADIENTS: dict[str, tuple[list[int], int, dict[str, Any]]] = {
    "waiting for each exchange": (LENGTHS, 1, {}),
    "in three parts": (LENGTHS, 3, {}),
    "rows longer than the position table": (LENGTHS, 2, {"max_positions": 48}),
    "rows in the first slice alone": (SHORT, 2, {}),
}
"""Lengths, parts that take turns, and what differs from the preset."""


@pytest.fixture(scope="module")
def batch() -> Batch:
    return ranks.made_batch(WIDTH, LENGTHS)


@pytest.fixture(scope="module")
def whole_rows() -> tuple[Tensor, Tensor]:
    """Sources without padding, and targets of a length that no group shares evenly."""
    chance = torch.Generator().manual_seed(8)
    return torch.randint(16, 32_000, (3, WIDTH), generator=chance), torch.randint(16, 32_000, (3, 7), generator=chance)


@pytest.fixture(scope="module")
def two_ranks(batch: Batch, whole_rows: tuple[Tensor, Tensor]) -> list[dict[str, Any]]:
    """Results of every task below, of both ranks: the processes start once."""
    source, _ = whole_rows
    lengths = torch.tensor(SOME_LENGTHS)
    tasks = {
        name: (ranks.split_gradients, (ranks.made_batch(WIDTH, rows), parts, overrides))
        for name, (rows, parts, overrides) in GRADIENTS.items()
    }
    tasks |= {
        "results": (ranks.split_results, whole_rows),
        "layer by layer": (ranks.split_layer_by_layer, (source, lengths)),
        "exchanges, waiting": (ranks.watched, (batch, 1)),
        "exchanges": (ranks.watched, (batch, 2)),
        "bf16": (ranks.bf16_loss, (batch,)),
        "halo": (ranks.halo_elements, (5, 64, 4, 16)),
    }
    return on_ranks(2, ranks.in_turn, tasks)


def recipe_batches(recipe: Recipe, steps: int) -> list[Batch]:
    batches = Batches(recipe)
    return [batches[step] for step in range(steps)]


def largest_difference(found: list[list[list[float]]], expected: list[list[float]]) -> float:
    return float((torch.tensor(found) - torch.tensor(expected)).abs().max())


def check_gradients(found: dict[str, Tensor], batch: Batch, overrides: dict[str, Any]) -> None:
    expected = ranks.gradients_of(ranks.spread_model(**overrides), batch)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.any(), f"{name} takes no part, and proves nothing"
        tolerance = 1e-6 + 2e-5 * float(gradient.abs().max())
        torch.testing.assert_close(
            found[name], gradient, atol=tolerance, rtol=0, msg=lambda text, name=name: name + text
        )


def test_two_sequence_ranks_loss_parity_over_ten_steps(recipe: Recipe) -> None:
    batches = recipe_batches(recipe, 10)
    found = on_ranks(2, ranks.train_split, batches)
    expected = ranks.trained(ranks.plain_model(), batches)
    assert largest_difference(found, expected) <= LARGEST_LOSS_DIFFERENCE
    assert expected[0][-1] - expected[-1][-1] > 0.3, "a network that does not learn proves nothing"


@pytest.mark.slow
def test_four_sequence_ranks_loss_parity_over_ten_steps(recipe: Recipe) -> None:
    batches = recipe_batches(recipe, 10)
    found = on_ranks(4, ranks.train_split, batches)
    expected = ranks.trained(ranks.plain_model(), batches)
    assert largest_difference(found, expected) <= LARGEST_LOSS_DIFFERENCE


@pytest.mark.parametrize("name", GRADIENTS)
def test_two_sequence_ranks_gradient_parity(two_ranks: list[dict[str, Any]], name: str) -> None:
    lengths, _, overrides = GRADIENTS[name]
    for found in two_ranks:
        check_gradients(found[name], ranks.made_batch(WIDTH, lengths), overrides)


def test_four_sequence_ranks_gradient_parity(batch: Batch) -> None:
    for found in on_ranks(4, ranks.split_gradients, batch, 2, {}):
        check_gradients(found, batch, {})


@torch.no_grad()
def test_every_method_of_slices_has_parity_with_whole_rows(
    two_ranks: list[dict[str, Any]], whole_rows: tuple[Tensor, Tensor]
) -> None:
    source, target = whole_rows
    expected = ranks.results(ranks.spread_model(), source, source, target)
    for rank, found in enumerate(two_ranks):
        for name, tensor in expected.items():
            own = tensor.chunk(2, dim=1)[rank] if name in ("memory", "masked") else tensor
            torch.testing.assert_close(found["results"][name], own, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_layers_called_one_by_one_have_parity_too(
    two_ranks: list[dict[str, Any]], whole_rows: tuple[Tensor, Tensor]
) -> None:
    lengths = torch.tensor(SOME_LENGTHS)
    expected = ranks.layer_by_layer(ranks.spread_model(), whole_rows[0], lengths)
    found = torch.cat([each["layer by layer"] for each in two_ranks], dim=1)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(found[row, :length], expected[row, :length], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_without_its_halo_a_slice_computes_something_else(whole_rows: tuple[Tensor, Tensor]) -> None:
    """The negative control of the tests above: a halo of 4 tokens changes the memory by far more than they allow."""
    source, _ = whole_rows
    with_halo, without = (ranks.spread_model(recurrent_halo=halo).encode(source) for halo in (4, 0))
    assert (with_halo - without).abs().max() > 1e-2


def test_an_exchange_is_on_its_way_while_others_are_computed(two_ranks: list[dict[str, Any]]) -> None:
    (waiting, most), (overlapped, most_overlapped) = two_ranks[0]["exchanges, waiting"], two_ranks[0]["exchanges"]
    assert most == 1
    assert most_overlapped >= 4
    assert sum(waiting) == sum(overlapped), "turns cut the transfers into smaller ones and add nothing"
    assert len(overlapped) > len(waiting)


def test_bf16_is_near_fp32(two_ranks: list[dict[str, Any]], batch: Batch) -> None:
    exact = float(compute_losses(ranks.spread_model(), batch).weighted(ObjectivesSection()).detach())
    for loss, finite in (each["bf16"] for each in two_ranks):
        assert finite
        assert abs(loss - exact) < 0.02 * exact
        assert loss == two_ranks[0]["bf16"][0], "the ranks have one loss"


def test_recurrences_send_their_halo_alone(two_ranks: list[dict[str, Any]]) -> None:
    assert [each["halo"] for each in two_ranks] == [5 * 4 * 16] * 2


def test_a_layer_sends_query_key_and_value_and_what_comes_of_them(two_ranks: list[dict[str, Any]]) -> None:
    """Elements of the first layer's two exchanges, a rank's own part included: D = 64, slices of 64 tokens."""
    sent, _ = two_ranks[0]["exchanges, waiting"]
    assert sent[:2] == [3 * len(LENGTHS) * 64 * 64, len(LENGTHS) * 64 * 64]


def test_tasks_take_turns() -> None:
    seen: list[str] = []

    def task(name: str, rounds: int):
        for number in range(rounds):
            seen.append(f"{name}{number}")
            yield
        return name

    assert run(together([task("a", 1), task("b", 3), task("c", 2)])) == ["a", "b", "c"]
    assert seen == ["a0", "b0", "c0", "b1", "c1", "b2"]
    assert run(together([])) == []


class LoneLink(Link):
    """One process that takes itself for a group's first rank."""

    def __init__(self, size: int) -> None:
        self.group, self.blocking, self.rank, self.size = None, False, 0, size


def test_a_group_that_cannot_share_the_heads_is_told_what_fits() -> None:
    with pytest.raises(
        ValueError, match="3 sequence-parallel ranks cannot share 4 attention heads evenly: choose 1 or 2"
    ):
        apply_sequence_parallel(ranks.plain_model(), None, link=LoneLink(3))


def test_an_exact_recurrence_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="recurrent_block = None is one recurrence over whole rows"):
        apply_sequence_parallel(ranks.spread_model(recurrent_block=None), None, link=LoneLink(2))


def test_slices_of_broken_blocks_no_parts_and_unknown_lengths_are_refused() -> None:
    model = ranks.plain_model()
    with pytest.raises(ValueError, match="at least 1 part, got 0"):
        apply_sequence_parallel(model, None, turns=0, link=LoneLink(2))
    apply_sequence_parallel(model, None, link=LoneLink(2))
    slice_ = torch.zeros(1, 24, dtype=torch.int64)
    with pytest.raises(
        ValueError, match="a slice of 24 tokens is no multiple of recurrent_block = 16: pad the rows to a "
    ):
        model.encode(slice_)
    with pytest.raises(ValueError, match="give lengths"):
        model(slice_)
    with pytest.raises(ValueError, match="load its weights into another to decode"):
        model.greedy("generative", slice_)
