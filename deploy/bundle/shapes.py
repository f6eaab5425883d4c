"""The configuration of bare weights: the preset that their shapes fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from model.configuration import PRESETS, HybridConfig

if TYPE_CHECKING:
    from torch import Tensor

SIZES = {
    "d_model": ("embedding.weight", 1),
    "encoder_ffn": ("encoder.layers.0.feed_forward.up.weight", 0),
    "decoder_ffn": ("generative.layers.0.feed_forward.up.weight", 0),
    "vocab_size": ("embedding.weight", 0),
    "max_positions": ("encoder.positions.table", 0),
    "max_target_positions": ("generative.positions.table", 0),
}
"""Fields that are a size of a tensor: which, and of its dimensions which one."""

KEYS_VALUES = "generative.layers.0.cross_attention.kv.weight"

COUNTS = {
    "encoder_layers": "encoder.layers.",
    "hybrid_units": "hybrid.units.",
    "decoder_layers": "generative.layers.",
    "pointer_layers": "pointer.layers.",
}
"""Fields that count modules of a list."""


def config_of_shapes(weights: Mapping[str, Tensor], source: str) -> HybridConfig:
    """The preset of weights that come without a configuration, with their own vocabulary and numbers of positions.

    Shapes tell neither heads nor blocks of the recurrences: those are the preset's, so a preset has to fit in all that
    shapes do tell. Key and value heads they tell once the heads are known, and those may be other than the preset's.
    Raises ValueError naming what the shapes say where no preset fits.
    """
    try:
        found = {field: weights[name].shape[dimension] for field, (name, dimension) in SIZES.items()}
    except (KeyError, IndexError):
        told = ", ".join(f"{name} {tuple(each.shape)}" for name, each in list(weights.items())[:3]) or "no tensors"
        more = f" and {len(weights) - 3} more" if len(weights) > 3 else ""
        raise ValueError(
            f"{source} holds no weights of this network: it lacks an embedding or a layer, and has {told}{more}. Give "
            "what `trident train` wrote, or weights under the network's own names"
        ) from None
    found |= {field: _count(weights, prefix) for field, prefix in COUNTS.items()}
    for preset, fields in PRESETS.items():
        if all(found[field] == value for field, value in fields.items() if field in found):
            own = {name: found[name] for name in found if name not in fields}
            return preset_with_heads(preset, weights, **own)
    told = ", ".join(f"{field}={value}" for field, value in found.items())
    raise ValueError(
        f"{source} has no configuration, there is no config.json beside it, and its shapes are no preset's ({told}): "
        "put config.json beside it, or pass --preset"
    )


def preset_with_heads(preset: str, weights: Mapping[str, Tensor], **own: int) -> HybridConfig:
    """A preset, its key and value heads as many as the weights have, where those are a number that fits its heads.

    Weights of before presets had fewer of them than heads load so.
    """
    config = HybridConfig.from_preset(preset, **own)
    head_width = config.d_model // config.num_heads
    kv_heads = weights[KEYS_VALUES].shape[0] // (2 * head_width) if KEYS_VALUES in weights else 0
    if not kv_heads or config.num_heads % kv_heads:
        return config
    return HybridConfig.from_preset(preset, num_kv_heads=kv_heads, **own)


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).partition(".")[0] for name in weights if name.startswith(prefix)})
