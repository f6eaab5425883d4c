"""Weights in blocks of 32: how near they stay to what they were."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.graphs.blockwise import BLOCK, dequantize, quantize


def matrix(rows: int, blocks: int, scale: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal((rows, blocks * BLOCK)) * scale).astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 5),
    blocks=st.integers(1, 3),
    scale=st.sampled_from([1e-3, 0.02, 1.0, 50.0]),
    seed=st.integers(0, 99),
)
def test_eight_bits_are_off_by_half_a_level_at_most(rows: int, blocks: int, scale: float, seed: int) -> None:
    weight_NK = matrix(rows, blocks, scale, seed)
    stored = quantize(weight_NK, 8)
    level = np.repeat(stored.scales.astype(np.float32), BLOCK, axis=1)
    # Scales are rounded to float16 (2⁻¹¹ of themselves, and 2⁻²⁴ where they are subnormal), which may clip the extreme.
    slack = 127 * (level * 2**-11 + 2**-24)
    assert (np.abs(dequantize(stored) - weight_NK) <= level / 2 + slack).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_requantising_what_was_dequantised_changes_little(bits: int) -> None:
    once = dequantize(quantize(matrix(8, 4, 0.05, 1), bits))
    twice = dequantize(quantize(once, bits))
    assert np.abs(twice - once).max() < 0.05 / (1 << (bits - 3))


def test_four_bits_pack_the_even_element_into_the_low_half() -> None:
    weight_NK = np.zeros((1, BLOCK), np.float32)
    weight_NK[0, 0], weight_NK[0, 1] = -8, 7
    stored = quantize(weight_NK, 4)
    assert stored.values.shape == (1, 1, BLOCK // 2)
    assert stored.values[0, 0, 0] == 0xF0
    assert np.array_equal(dequantize(stored), weight_NK)


def test_four_bits_beat_plain_rounding_to_the_extreme() -> None:
    weight_NK = matrix(64, 8, 0.05, 2)
    blocks = weight_NK.reshape(64, 8, BLOCK)
    scale = np.abs(blocks).max(-1, keepdims=True) / 7
    plain = np.clip(np.rint(blocks / scale), -8, 7) * scale
    plain_error = np.square(plain.reshape(weight_NK.shape) - weight_NK).mean()
    assert np.square(dequantize(quantize(weight_NK, 4)) - weight_NK).mean() < 0.9 * plain_error


@pytest.mark.parametrize("bits", [8, 4])
def test_a_block_of_zeros_stays_zero(bits: int) -> None:
    weight_NK = matrix(2, 2, 1.0, 3)
    weight_NK[0, :BLOCK] = 0
    restored = dequantize(quantize(weight_NK, bits))
    assert np.isfinite(restored).all()
    assert not restored[0, :BLOCK].any()


def test_a_block_below_what_float16_can_scale_becomes_zero() -> None:
    assert not dequantize(quantize(np.full((1, BLOCK), 1e-9, np.float32), 8)).any()
