"""Every head alone, padded and in mixed batches; decoding on caches; the pointer's mixture; save and load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.configuration import HybridConfig
from model.network import KINDS, HybridModel

LENGTHS = [50, 1, 16, 17, 33, 20, 4]
"""At and around the nano preset's blocks (16) and halos (4)."""

Head = Callable[[HybridModel, Tensor, "Tensor | None"], Tensor]
TARGETS = torch.tensor([[1, 400, 500, 600, 700]])


def pointer(model: HybridModel, ids: Tensor, lengths: Tensor | None) -> Tensor:
    return model.pointer_log_probs(model.encode(ids, lengths), lengths, ids, TARGETS.expand(len(ids), -1))


def generative(model: HybridModel, ids: Tensor, lengths: Tensor | None) -> Tensor:
    return model.generative_logits(model.encode(ids, lengths), lengths, TARGETS.expand(len(ids), -1))


HEADS: dict[str, Head] = {
    "memory": lambda model, ids, lengths: model.encode(ids, lengths),
    "masked tokens": lambda model, ids, lengths: model.lm_logits(model.encode(ids, lengths)),
    "router": lambda model, ids, lengths: model.task_logits(model.encode(ids, lengths), lengths),
    "emissions": lambda model, ids, lengths: model.emissions(model.encode(ids, lengths), lengths),
    "generative": generative,
    "pointer": pointer,
}
BY_TOKEN = ("memory", "masked tokens", "emissions")


def batch(lengths: list[int], extra: int = 0) -> tuple[Tensor, Tensor]:
    """Random rows; what lies behind a row is not even padding."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(16, 32_000, (len(lengths), max(lengths) + extra), generator=generator)
    return ids, torch.tensor(lengths)


@torch.no_grad()
@pytest.mark.parametrize("head", list(HEADS))
def test_a_row_is_the_same_alone_padded_and_among_others(network: HybridModel, head: str) -> None:
    ids, lengths = batch(LENGTHS, extra=9)
    order = torch.randperm(len(LENGTHS), generator=torch.Generator().manual_seed(4))
    together = HEADS[head](network, ids, lengths)
    shuffled = HEADS[head](network, ids[order], lengths[order])[order.argsort()]
    for row, length in enumerate(LENGTHS):
        tokens = slice(0, length) if head in BY_TOKEN else slice(None)
        one = ids[row : row + 1]
        alone = HEADS[head](network, one[:, :length], None)[0]
        padded = HEADS[head](network, one, lengths[row : row + 1])[0, tokens]
        for other in (padded, together[row, tokens], shuffled[row, tokens]):
            torch.testing.assert_close(other, alone, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("head", list(HEADS))
def test_every_head_reads_its_source(network: HybridModel, head: str) -> None:
    """The negative control: another token changes every result by far more than the tolerance."""
    ids, lengths = batch([20])
    other = ids.clone()
    other[0, 7] = 77
    assert (HEADS[head](network, ids, lengths) - HEADS[head](network, other, lengths)).abs().max() > 1e-3


@torch.no_grad()
def test_without_lengths_trailing_pads_are_no_tokens(network: HybridModel) -> None:
    ids, _ = batch([12, 30])
    ids[0, 12:] = 0
    assert network.lengths_of(ids).tolist() == [12, 30]
    assert network.lengths_of(torch.zeros(2, 4, dtype=torch.int64)).tolist() == [1, 1]
    torch.testing.assert_close(network(ids)[0, :12], network(ids[:1, :12])[0], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_decoder_sees_no_later_token(network: HybridModel) -> None:
    ids, lengths = batch([20])
    memory = network.encode(ids, lengths)
    changed = TARGETS.clone()
    changed[0, 3] = 9_000
    for kind in KINDS:
        first, second = (network.decoder_states(kind, memory, lengths, target)[0] for target in (TARGETS, changed))
        torch.testing.assert_close(first[:3], second[:3])
        assert (first[3:] - second[3:]).abs().amax(-1).min() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_on_caches_follows_the_argmax_of_whole_targets(network: HybridModel, kind: str) -> None:
    ids, lengths = batch(LENGTHS)
    texts = network.greedy(kind, ids, lengths, 10)
    assert len({tuple(text) for text in texts}) > len(texts) // 2, "texts that do not vary prove nothing"
    memory = network.encode(ids, lengths)
    for row, text in enumerate(texts):
        one = slice(row, row + 1)
        read = torch.tensor([[1, *text]])
        arguments = (memory[one], lengths[one])
        if kind == "generative":
            scores = network.generative_logits(*arguments, read)
        else:
            scores = network.pointer_log_probs(*arguments, ids[one], read)
        assert scores.argmax(-1)[0, : len(text)].tolist() == text
        alone = network.greedy(kind, ids[one, : LENGTHS[row]], None, 10)[0]
        assert alone == text


def test_an_end_token_ends_a_row_alone(network: HybridModel) -> None:
    ids, lengths = batch([20, 30])
    texts = network.greedy("generative", ids, lengths, 6)
    config = HybridConfig(**{**network.config.dimensions(), "eos_token_id": texts[0][2]})
    model = HybridModel(config).eval()
    model.load_state_dict(network.state_dict())
    ended = model.greedy("generative", ids, lengths, 6)
    assert ended[0] == texts[0][: texts[0].index(config.eos_token_id)]
    stop = texts[1].index(config.eos_token_id) if config.eos_token_id in texts[1] else None
    assert ended[1] == texts[1][:stop]


@torch.no_grad()
def test_the_pointers_probabilities_sum_to_1_and_reach_every_source_token(network: HybridModel) -> None:
    ids, lengths = batch([12, 30])
    found = pointer(network, ids, lengths).exp()
    torch.testing.assert_close(found.sum(-1), torch.ones(2, TARGETS.shape[1]), atol=1e-4, rtol=0)
    bias = network.pointer.gate.bias
    before = bias.clone()
    try:
        bias.fill_(-60)
        copied = pointer(network, ids, lengths).exp()
    finally:
        bias.copy_(before)
    inside = torch.zeros(2, 32_000, dtype=torch.bool)
    for row, length in enumerate(lengths.tolist()):
        inside[row, ids[row, :length]] = True
    assert copied.transpose(1, 2)[inside].min() > 1e-6
    assert copied.transpose(1, 2)[~inside].max() < 1e-8, "a closed gate gives nothing to other tokens"


@torch.no_grad()
def test_a_token_that_stands_twice_is_copied_with_both_shares(network: HybridModel) -> None:
    ids = torch.tensor([[500, 600, 500]])
    memory = network.encode(ids)
    states = network.decoder_states("pointer", memory, None, TARGETS)
    scores = network.pointer.copy_query(states) @ network.pointer.copy_key(memory).transpose(1, 2) / 64**0.5
    gate, shares = torch.sigmoid(network.pointer.gate(states))[..., 0], scores.softmax(-1)
    expected = gate * network.logits(states).softmax(-1)[..., 500] + (1 - gate) * (shares[..., 0] + shares[..., 2])
    torch.testing.assert_close(network.pointer_log_probs(memory, None, ids, TARGETS)[..., 500].exp(), expected)


def test_a_target_beyond_the_table_and_an_unknown_decoder_are_refused(network: HybridModel) -> None:
    ids, _ = batch([5])
    memory = network.encode(ids)
    with pytest.raises(ValueError, match="a target of 513 tokens exceeds max_target_positions = 512"):
        network.generative_logits(memory, None, torch.ones(1, 513, dtype=torch.int64))
    with pytest.raises(ValueError, match="a target of 600 tokens exceeds max_target_positions = 512"):
        network.greedy("pointer", ids, None, 600)
    with pytest.raises(ValueError, match="unknown decoder 'span': choose from generative, pointer"):
        network.decoder("span")


@torch.no_grad()
def test_rows_longer_than_the_position_table(network: HybridModel) -> None:
    ids, lengths = batch([2_060, 30])
    together = network.encode(ids, lengths)
    torch.testing.assert_close(together[0], network.encode(ids[:1])[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(together[1, :30], network.encode(ids[1:, :30])[0], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_save_and_load(network: HybridModel, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = HybridModel.from_pretrained(tmp_path)
    assert not loaded.training
    assert loaded.config.dimensions() == network.config.dimensions()
    expected = network.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    ids, lengths = batch([20, 7])
    assert torch.equal(loaded(ids, lengths), network(ids, lengths))


@torch.no_grad()
def test_bf16_autocast_is_near_float32(network: HybridModel) -> None:
    ids, lengths = batch(LENGTHS)
    exact = network.encode(ids, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = network.encode(ids, lengths)
    for row, length in enumerate(LENGTHS):
        assert (near[row, :length].float() - exact[row, :length]).abs().mean() < 0.1 * exact[row, :length].std()


def repeated(rows: Tensor, head_width: int, times: int) -> Tensor:
    """Key or value heads [K·E,D], each as often as heads read it."""
    return rows.unflatten(0, (-1, head_width)).repeat_interleave(times, 0).flatten(0, 1)


@torch.no_grad()
@pytest.mark.parametrize("heads", [{"num_heads": 4, "num_kv_heads": 2}, {"num_heads": 8, "num_kv_heads": 4}], ids=str)
def test_grouped_heads_are_heads_that_share_keys_and_values(heads: dict[str, int]) -> None:
    """The same network with every key and value head written out for each of its heads, trained and decoded."""
    torch.manual_seed(1)
    grouped = HybridModel(HybridConfig.from_preset("nano", **heads)).eval()
    plain = HybridModel(HybridConfig.from_preset("nano", num_heads=heads["num_heads"])).eval()
    assert plain.config.num_kv_heads == heads["num_heads"]
    width, head_width = grouped.config.d_model, grouped.config.d_model // heads["num_heads"]
    times = heads["num_heads"] // heads["num_kv_heads"]
    weights = grouped.state_dict()
    for name, weight in weights.items():
        if name.endswith("cross_attention.kv.weight"):
            weights[name] = torch.cat([repeated(part, head_width, times) for part in weight.chunk(2)])
        elif name.endswith("self_attention.qkv.weight"):
            keys_values = [repeated(part, head_width, times) for part in weight[width:].chunk(2)]
            weights[name] = torch.cat([weight[:width], *keys_values])
    plain.load_state_dict(weights)
    ids, lengths = batch(LENGTHS)
    for head in ("generative", "pointer"):
        torch.testing.assert_close(HEADS[head](grouped, ids, lengths), HEADS[head](plain, ids, lengths))
    for kind in KINDS:
        assert grouped.greedy(kind, ids, lengths, 6) == plain.greedy(kind, ids, lengths, 6)
    cache = grouped.generative.prefill(grouped.encode(ids, lengths), None, 6)
    assert cache.layers[0].cross_keys.shape[1] == heads["num_kv_heads"]
