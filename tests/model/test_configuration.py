"""Presets, their sizes, and values that are refused with their limit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.configuration import PRESETS, HybridConfig
from model.network import HybridModel


def parameters(preset: str) -> int:
    with torch.device("meta"):
        model = HybridModel(HybridConfig.from_preset(preset))
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_student_is_a_quarter_of_the_teacher_at_most() -> None:
    student, teacher = parameters("student"), parameters("teacher")
    assert 55e6 < student < 70e6
    assert student <= 0.25 * teacher


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_configuration_comes_back_from_its_dictionary(preset: str) -> None:
    config = HybridConfig.from_preset(preset, dropout=0.0, recurrent_block=None)
    again = HybridConfig.from_dict(config.to_dict())
    assert again.dimensions() == config.dimensions()
    assert again.recurrent_block is None
    assert HybridConfig(**config.dimensions()).dimensions() == config.dimensions()
    assert config.vocab_size == 32_000


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"d_model": 60}, r"d_model must be a multiple of 2 \* num_heads = 8, got 60"),
        ({"num_kv_heads": 3}, "num_kv_heads must divide num_heads = 4, got 3: choose from 1, 2, 4"),
        ({"num_kv_heads": 0}, "num_kv_heads must be an integer of at least 1, got 0"),
        (
            {"num_kv_heads": 1},
            "num_kv_heads must be at least num_heads / 2 = 2, got 1: .* copy keys .* 4 caches",
        ),
        ({"pointer_layers": 2}, "pointer_layers must be below decoder_layers = 2, got 2"),
        ({"encoder_layers": 0}, "encoder_layers must be an integer of at least 1, got 0"),
        ({"hybrid_units": 1.5}, "hybrid_units must be an integer of at least 1, got 1.5"),
        ({"decoder_layers": True}, "decoder_layers must be an integer of at least 1, got True"),
        ({"recurrent_halo": 17}, "recurrent_halo must be at most recurrent_block = 16, got 17"),
        ({"recurrent_halo": -1}, "recurrent_halo must be an integer of at least 0, got -1"),
        ({"max_positions": 1}, "max_positions must be an integer of at least 2, got 1"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"dropout": float("nan")}, "dropout must be at least 0 and below 1, got nan"),
        ({"eos_token_id": 32_000}, "eos_token_id must be below vocab_size = 32000, got 32000"),
        ({"d_modle": 64}, "unknown field 'd_modle'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_values_are_refused_with_their_limit(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HybridConfig.from_preset("nano", **changed)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_configuration_of_before_grouped_heads_has_as_many_as_heads(preset: str) -> None:
    """Bundles and checkpoints carry all the fields that there were when they were written."""
    fields = HybridConfig.from_preset(preset).to_dict()
    assert fields.pop("num_kv_heads") < fields["num_heads"]
    assert HybridConfig.from_dict(fields).num_kv_heads == fields["num_heads"]
    assert HybridConfig.from_preset(preset, num_heads=2, num_kv_heads=1, pointer_layers=1).num_kv_heads == 1


def test_a_configuration_is_saved_with_its_groups(tmp_path: Path) -> None:
    for kv_heads in (2, 8):
        HybridConfig.from_preset("student", num_kv_heads=kv_heads).save_pretrained(tmp_path)
        assert HybridConfig.from_pretrained(tmp_path).num_kv_heads == kv_heads


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown preset 'huge': choose from teacher, student, nano"):
        HybridConfig.from_preset("huge")
