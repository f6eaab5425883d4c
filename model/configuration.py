"""The network's dimensions, and the presets they come in."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

PRESETS: dict[str, dict[str, int]] = {
    "teacher": {
        "d_model": 768,
        "num_heads": 12,
        "num_kv_heads": 3,
        "encoder_layers": 12,
        "encoder_ffn": 3072,
        "hybrid_units": 6,
        "decoder_layers": 16,
        "decoder_ffn": 3072,
        "pointer_layers": 6,
        "recurrent_block": 64,
        "recurrent_halo": 16,
    },
    "student": {
        "d_model": 512,
        "num_heads": 8,
        "num_kv_heads": 2,
        "encoder_layers": 6,
        "encoder_ffn": 2048,
        "hybrid_units": 3,
        "decoder_layers": 4,
        "decoder_ffn": 1024,
        "pointer_layers": 2,
        "recurrent_block": 64,
        "recurrent_halo": 16,
    },
    "nano": {
        "d_model": 64,
        "num_heads": 4,
        "num_kv_heads": 2,
        "encoder_layers": 2,
        "encoder_ffn": 128,
        "hybrid_units": 2,
        "decoder_layers": 2,
        "decoder_ffn": 96,
        "pointer_layers": 1,
        "recurrent_block": 16,
        "recurrent_halo": 4,
    },
}
"""Teacher: the full size. Student: at most a quarter of its parameters. Nano: for tests."""

COMMON: dict[str, int | float] = {
    "vocab_size": 32_000,
    "max_positions": 2_048,
    "max_target_positions": 512,
    "max_answer_tokens": 48,
    "dropout": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""What all presets share."""

SMALLEST = {"recurrent_halo": 0, "max_positions": 2, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
"""Lower limits of the integer fields; 1 where a field is not named."""


class HybridConfig(PretrainedConfig):
    """Dimensions of a hybrid network.

    Fields:
        preset: teacher, student or nano; every field that is not given has this preset's value.
        vocab_size: V.
        d_model: D, the width of all hidden states; a multiple of 2 · num_heads.
        num_heads: H, of every attention.
        num_kv_heads: K, key and value heads of the decoders' attentions, which groups of H / K heads share; where
            num_heads is given and this is not, as many, which is what configurations older than this field mean.
        encoder_layers, encoder_ffn: depth and inner width of the base encoder.
        hybrid_units: parallel attention + BiGRU units.
        decoder_layers, decoder_ffn: depth of the generative decoder, inner width of both decoders.
        pointer_layers: depth of the summary decoder, below `decoder_layers`: both keep their caches in one pool.
        recurrent_block: tokens of a block of the recurrences; None runs them over whole rows.
        recurrent_halo: tokens that warm a block up on either side, at most a block.
        max_positions, max_target_positions: rows of the source's and the targets' position tables.
        max_answer_tokens: longest span the extractive decoder finds.
        dropout: of embeddings and of every sublayer's output, in training.

    Raises:
        ValueError: a value outside its limits, naming the field, the value and the limit.
    """

    model_type = "trident-hybrid"

    def __init__(self, *, preset: str = "student", **kwargs: Any) -> None:
        if preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}: choose from {', '.join(PRESETS)}")
        values: dict[str, Any] = {**COMMON, **PRESETS[preset]}
        given = {name: kwargs.pop(name) for name in list(kwargs) if name in values}
        if "num_heads" in given:
            given.setdefault("num_kv_heads", given["num_heads"])
        values |= given
        super().__init__(**{**kwargs, "tie_word_embeddings": True})
        self.preset = preset
        for name, value in values.items():
            setattr(self, name, value)
        _check(values)

    @classmethod
    def from_preset(cls, preset: str, **overrides: Any) -> HybridConfig:
        """A preset, some of its fields changed.

        Raises ValueError for an unknown preset or field, and for values outside their limits.
        """
        known = {**COMMON, **PRESETS["nano"]}
        if unknown := sorted(set(overrides) - set(known)):
            raise ValueError(f"unknown field {unknown[0]!r} of HybridConfig: choose from {', '.join(sorted(known))}")
        return cls(preset=preset, **overrides)

    def dimensions(self) -> dict[str, Any]:
        """This class's own fields, without what transformers adds to a configuration."""
        return {name: getattr(self, name) for name in ("preset", *COMMON, *PRESETS["nano"])}


def _check(values: dict[str, Any]) -> None:
    """Raises ValueError naming field, value and limit."""
    for name, value in values.items():
        if name == "dropout" or (name == "recurrent_block" and value is None):
            continue
        smallest = SMALLEST.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
            raise ValueError(f"{name} must be an integer of at least {smallest}, got {value!r}")
    if not isinstance(values["dropout"], (int, float)) or not 0 <= values["dropout"] < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {values['dropout']!r}")
    heads, width = values["num_heads"], values["d_model"]
    if width % (2 * heads):
        raise ValueError(
            f"d_model must be a multiple of 2 * num_heads = {2 * heads}, got {width}: "
            "heads, and the two directions of a recurrence, share it evenly"
        )
    kv_heads = values["num_kv_heads"]
    if heads % kv_heads:
        fitting = ", ".join(str(each) for each in range(1, heads + 1) if heads % each == 0)
        raise ValueError(
            f"num_kv_heads must divide num_heads = {heads}, got {kv_heads}: choose from {fitting}, for equal groups of "
            "heads share a key and value head"
        )
    if values["pointer_layers"] >= values["decoder_layers"]:
        raise ValueError(
            f"pointer_layers must be below decoder_layers = {values['decoder_layers']}, got "
            f"{values['pointer_layers']}: both decoders keep their caches in one pool"
        )
    free = 2 * (values["decoder_layers"] - values["pointer_layers"])
    if heads // kv_heads > free:
        raise ValueError(
            f"num_kv_heads must be at least num_heads / {free} = {-(-heads // free)}, got {kv_heads}: a summary's copy "
            f"keys are as wide as {heads // kv_heads} caches, and {values['pointer_layers']} of "
            f"{values['decoder_layers']} decoder layers leave {free} free"
        )
    block, halo = values["recurrent_block"], values["recurrent_halo"]
    if block is not None and halo > block:
        raise ValueError(
            f"recurrent_halo must be at most recurrent_block = {block}, got {halo}: "
            "choose a larger block, or recurrent_block=None for the exact recurrence"
        )
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if values[name] >= values["vocab_size"]:
            raise ValueError(f"{name} must be below vocab_size = {values['vocab_size']}, got {values[name]}")
