"""The networks that can be planned: HybridConfig's presets, and the guide's 128 layers, which nothing here trains."""

from __future__ import annotations

from typing import Any

from model.configuration import PRESETS, HybridConfig

GUIDE = "guide"
GUIDE_LAYERS: dict[str, int] = {"encoder_layers": 48, "decoder_layers": 64, "pointer_layers": 16}
"""The guide speaks of 128 layers in eight stages of sixteen, and gives no width for them: here they have the teacher's,
and stand in its proportions (12, 16 and 6), rounded to whole stages of sixteen: three, four and one."""
GUIDE_STAGES = 8
NAMES = (GUIDE, *PRESETS)


def planned_config(preset: str, overrides: dict[str, Any]) -> HybridConfig:
    """A preset, some of its fields changed. Raises ValueError for an unknown preset, field or value."""
    if preset == GUIDE:
        return HybridConfig.from_preset("teacher", **{**GUIDE_LAYERS, **overrides})
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}: choose from {', '.join(NAMES)}")
    return HybridConfig.from_preset(preset, **overrides)
