"""Batches: a pure function of the step, whose rows, lengths and labels line up."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader

from model.cross_entropy import IGNORE
from model.tokenizer import BOS, EOS, GENERATION, MASK, PAD, QA, SEP, SUMMARY, decode
from training.config import LongSection, ObjectivesSection, Recipe
from training.data.batches import SHORT_PROMPT, Batch, Batches, TextWindows
from training.data.shards import Shard, read_shards

STEPS = range(24)


@pytest.fixture
def batches(recipe: Recipe) -> Batches:
    return Batches(recipe)


def equal(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one[:-1], other[:-1], strict=True)) and one.tokens == other.tokens


def rows_of_kind(batch: Batch, recipe: Recipe, kind: str) -> list[tuple[list[int], int]]:
    """Sources of the rows of a kind without their padding, and their routes."""
    sizes = recipe.batch
    kinds = ["pretraining"] * sizes.pretraining_rows + ["instruction"] * sizes.instruction_rows
    kinds += ["qa"] * sizes.qa_rows + ["summary"] * sizes.summary_rows
    rows = zip(kinds, batch.source_BS.tolist(), batch.lengths_B.tolist(), batch.route_B.tolist(), strict=True)
    return [(ids[:length], route) for found, ids, length, route in rows if found == kind]


def all_pairs(shards: list[Shard]) -> Iterator[tuple[list[int], list[int]]]:
    """Source and target of every row."""
    for shard in shards:
        for row in shard.rows:
            middle = row["offset"] + row["source_length"]
            yield shard.tokens[row["offset"] : middle].tolist(), shard.tokens[middle:][: row["target_length"]].tolist()


def test_a_batch_depends_on_its_step_alone(batches: Batches, recipe: Recipe) -> None:
    forward = [batches[step] for step in STEPS]
    again = Batches(recipe)
    backward = [again[step] for step in reversed(STEPS)][::-1]
    assert all(equal(one, other) for one, other in zip(forward, backward, strict=True))
    assert not any(equal(one, other) for one, other in itertools.pairwise(forward))


def test_another_seed_gives_other_batches(batches: Batches, recipe: Recipe) -> None:
    other = Batches(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, seed=1)))
    assert not equal(batches[3], other[3])


def test_worker_processes_build_the_same_batches(batches: Batches, recipe: Recipe) -> None:
    loader: DataLoader[Batch] = DataLoader(Batches(recipe), batch_size=None, sampler=range(5, 11), num_workers=2)
    assert all(equal(batch, batches[step]) for step, batch in zip(range(5, 11), loader, strict=True))


def test_all_shapes_are_the_recipes_at_every_step(batches: Batches, recipe: Recipe) -> None:
    sizes, masked = recipe.batch, int(0.25 * 127)
    for step in STEPS:
        batch = batches[step]
        assert batch.source_BS.shape == (sizes.rows, 128)
        assert batch.masked_PM.shape == batch.masked_labels_PM.shape == (3, masked)
        assert batch.continuation_GT.shape == (4, 24)
        assert batch.context_Q2.shape == batch.answer_Q2.shape == (2, 2)
        assert batch.summary_UT.shape == (2, 24)


def test_rows_are_padded_behind_their_length_only(batches: Batches) -> None:
    for step in STEPS:
        batch = batches[step]
        for ids, length in zip(batch.source_BS, batch.lengths_B, strict=True):
            assert (ids[:length] != PAD).all()
            assert (ids[length:] == PAD).all()


def test_masked_labels_are_the_text_and_the_continuation_follows_it(batches: Batches, recipe: Recipe) -> None:
    width, seen = recipe.batch.source_tokens, 0
    for step in STEPS:
        batch = batches[step]
        rows = rows_of_kind(batch, recipe, "pretraining")
        for row, (ids, _) in enumerate(rows):
            window = batches.text[step * len(rows) + row]
            length = len(ids) - 1
            labels = batch.masked_labels_PM[row]
            places = batch.masked_PM[row][labels != IGNORE].tolist()
            assert len(set(places)) == len(places) in (0, int(0.25 * length))
            restored = list(ids)
            for place, label in zip(places, labels.tolist(), strict=False):
                restored[place] = label
            assert restored[1:] == window[:length].tolist()
            follows = window[length : length + 24].tolist()
            until = follows.index(EOS) + 1 if EOS in follows else len(follows)
            assert batch.continuation_GT[row].tolist() == follows[:until] + [IGNORE] * (24 - until)
            seen += len(places)
            assert length < width
    assert seen > 500


def test_eight_in_ten_chosen_tokens_are_masked_and_one_stays(batches: Batches) -> None:
    masked = kept = total = 0
    for step in range(80):
        batch = batches[step]
        chosen = batch.masked_labels_PM != IGNORE
        stands = batch.source_BS[: len(chosen)].gather(1, batch.masked_PM.long())[chosen]
        masked += int((stands == MASK).sum())
        kept += int((stands == batch.masked_labels_PM[chosen]).sum())
        total += int(chosen.sum())
    assert masked / total == pytest.approx(0.8, abs=0.03)
    assert kept / total == pytest.approx(0.1, abs=0.03)


def test_some_pretraining_rows_are_whole_and_some_short(batches: Batches, recipe: Recipe) -> None:
    whole, short, rows = 0, 0, 0
    for step in range(80):
        batch = batches[step]
        for (ids, _), labels in zip(rows_of_kind(batch, recipe, "pretraining"), batch.masked_labels_PM, strict=True):
            rows, whole, short = rows + 1, whole + int((labels == IGNORE).all()), short + (len(ids) < 128)
    assert 0.08 < whole / rows < 0.25
    assert 0.15 < short / rows < 0.35


def test_answers_decode_to_a_part_of_their_context(batches: Batches, recipe: Recipe, tokenizer: Tokenizer) -> None:
    found = 0
    shards = read_shards(recipe.data.folder, "qa")
    stored = {
        tuple(s.tokens[row["offset"] :][: row["length"]].tolist()): (int(row["answer_begin"]), int(row["answer_end"]))
        for s in shards
        for row in s.rows
    }
    for step in STEPS:
        batch = batches[step]
        rows = rows_of_kind(batch, recipe, "qa")
        for (ids, _), context, answer in zip(rows, batch.context_Q2.tolist(), batch.answer_Q2.tolist(), strict=True):
            assert ids[context[0] - 1] == SEP
            assert context[1] == len(ids)
            begin, end = stored[tuple(ids[1:])]
            if answer == [-1, -1]:
                assert end == -1
                continue
            assert context[0] <= answer[0] < answer[1] <= context[1]
            assert decode(tokenizer, ids[answer[0] : answer[1]]) == decode(tokenizer, ids[1:][begin:end]) != ""
            found += 1
    assert found > 20


@pytest.mark.parametrize(("kind", "token"), [("instruction", GENERATION), ("summary", SUMMARY)])
def test_targets_belong_to_their_sources(batches: Batches, recipe: Recipe, kind: str, token: int) -> None:
    known = {
        (tuple(source[:127]), tuple(target[:24])) for source, target in all_pairs(read_shards(recipe.data.folder, kind))
    }
    for step in STEPS:
        batch = batches[step]
        targets = batch.summary_UT if kind == "summary" else batch.continuation_GT[recipe.batch.pretraining_rows :]
        for (ids, _), target in zip(rows_of_kind(batch, recipe, kind), targets.tolist(), strict=True):
            written = [label for label in target if label != IGNORE]
            assert target == written + [IGNORE] * (24 - len(written))
            assert (tuple(ids[1:]), tuple(written)) in known
            assert ids[0] in (token, BOS)


def test_the_router_learns_from_rows_without_their_task_token_alone(batches: Batches, recipe: Recipe) -> None:
    tokens = {"instruction": GENERATION, "qa": QA, "summary": SUMMARY}
    routes = {"instruction": 0, "qa": 1, "summary": 2}
    dropped = total = 0
    for step in STEPS:
        for kind, token in tokens.items():
            for ids, route in rows_of_kind(batches[step], recipe, kind):
                assert (ids[0], route) in ((token, IGNORE), (BOS, routes[kind]))
                dropped, total = dropped + (ids[0] == BOS), total + 1
        for ids, route in rows_of_kind(batches[step], recipe, "pretraining"):
            learns = ids[0] == BOS and len(ids) - 1 <= SHORT_PROMPT
            assert route == (0 if learns else IGNORE)
    assert dropped / total == pytest.approx(0.5, abs=0.15)


def test_tokens_are_counted_without_padding(batches: Batches) -> None:
    batch = batches[2]
    labels = (batch.continuation_GT != IGNORE).sum() + (batch.summary_UT != IGNORE).sum()
    assert batch.tokens == int((batch.source_BS != PAD).sum() + labels)


def test_every_so_often_a_step_has_long_rows_of_text_only(recipe: Recipe) -> None:
    recipe.long = LongSection(every=3, rows=2, source_tokens=300, target_tokens=40)
    batches = Batches(recipe)
    shapes = [tuple(batches[step].source_BS.shape) for step in range(6)]
    assert shapes == [(8, 128), (8, 128), (2, 300)] * 2
    batch = batches[5]
    assert batch.continuation_GT.shape == (2, 40)
    assert (len(batch.context_Q2), len(batch.answer_Q2), len(batch.summary_UT)) == (0, 0, 0)
    assert equal(batch, Batches(recipe)[5])


def test_questions_longer_than_the_source_say_what_to_do(recipe: Recipe) -> None:
    recipe.batch.source_tokens = 48
    recipe.objectives = ObjectivesSection()
    with pytest.raises(ValueError, match=r"questions of up to \d+ tokens .* is 48: raise it, or .*--qa-window 48"):
        Batches(recipe)


def test_an_epoch_reads_every_window_once_and_the_next_in_another_order(recipe: Recipe) -> None:
    windows = TextWindows(read_shards(recipe.data.folder, "text"), 50, seed=3)
    count = len(windows)
    first = [windows[index].tolist() for index in range(count)]
    places = [(int(windows.order[index]), windows.shift) for index in range(count)]
    assert len({place for place, _ in places}) == count
    second = [windows[count + index].tolist() for index in range(count)]
    assert first != second
    assert [windows[index].tolist() for index in range(count)] == first


def test_windows_are_stretches_of_their_shards(recipe: Recipe) -> None:
    shards = read_shards(recipe.data.folder, "text")
    windows = TextWindows(shards, 50, seed=3)
    texts = [shard.tokens.astype(np.int64) for shard in shards]
    for index in range(0, 2 * len(windows), 7):
        window = windows[index]
        assert len(window) == 50
        views = [np.lib.stride_tricks.sliding_window_view(text, 50) for text in texts]
        assert any((view == window).all(axis=1).any() for view in views)


def test_text_too_short_for_the_windows_is_refused(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="too short for windows of 100000 tokens"):
        TextWindows(read_shards(recipe.data.folder, "text"), 100_000, seed=0)
