"""Several GRUs side by side on a GPU: one kernel a time step for all of them.

cuDNN takes one direction of one unit after the other, and each of its steps is too small to fill a GPU. Here a launch
computes a step of all N at once, the product with the state and the gates in one pass over memory:

    forward    h_t = (1 - z)·n + z·h_{t-1},  n = tanh(x_n + a_n + r·(W_n h_{t-1} + b)),  r, z = σ(x + a + W h_{t-1})
    backward   dh_t = dy_t + z·dh_{t+1} + Wᵀ d(gates of t+1), and from it the gradients of the gates of t

(Cho et al. 2014, in the form and the order of gates of torch.nn.GRU.) x is what the inputs give, a and b are biases.
The weights' gradient is one product over all steps afterwards. States are carried in float32. Letters: N recurrences,
W steps, M rows, U units, G = 3·U gates.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_ROWS = 64
WIDE_TILE, NARROW_TILE = 64, 32
"""States of a tile, and of a step through a product."""
LOADS_AHEAD = 2
"""With 3, Triton's default, one tile's backward step takes 152 of a Hopper SM's 228 KB, and a second one waits."""


def takes(units: int) -> bool:
    """Whether recurrences of so many units fall into tiles."""
    return units % NARROW_TILE == 0


def recur_together(gates_NWMG: Tensor, weight_NGU: Tensor, outer_NG: Tensor, inner_NU: Tensor) -> Tensor:
    """States [N,W,M,U] of N recurrences that start from zeros.

    Args:
        gates_NWMG: what the inputs give to the gates r, z, n, without biases.
        weight_NGU: from the state to the gates; of the same type.
        outer_NG: biases a of input and state together, but the state's to n; float32.
        inner_NU: that one, b, inside r's product; float32.
    """
    assert takes(weight_NGU.shape[-1])
    return _Together.apply(gates_NWMG, weight_NGU, outer_NG, inner_NU)


class _Together(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates_NWMG: Tensor, weight_NGU: Tensor, outer_NG: Tensor, inner_NU: Tensor) -> Tensor:
        given = [each.contiguous() for each in (gates_NWMG, weight_NGU, outer_NG, inner_NU)]
        count, steps, rows, gates = gates_NWMG.shape
        units = gates // 3
        states_NWMU = gates_NWMG.new_empty(count, steps, rows, units)
        kept_NWM4U = gates_NWMG.new_empty(count, steps, rows, 4 * units)
        carried_NMU = torch.zeros(count, rows, units, dtype=torch.float32, device=gates_NWMG.device)
        tensors = (*given, states_NWMU, kept_NWM4U, carried_NMU)
        grid, sizes = _tiles(count, steps, rows, units)
        for step in range(steps):
            _forward_step[grid](*tensors, step, **sizes)
        ctx.save_for_backward(given[1], states_NWMU, kept_NWM4U)
        return states_NWMU

    @staticmethod
    def backward(ctx: Any, wanted_NWMU: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weight_NGU, states_NWMU, kept_NWM4U = ctx.saved_tensors
        count, steps, rows, units = states_NWMU.shape
        gates_NWMG = states_NWMU.new_empty(count, steps, rows, 3 * units)
        carried_NMU = torch.zeros(count, rows, units, dtype=torch.float32, device=states_NWMU.device)
        tensors = (wanted_NWMU.contiguous(), weight_NGU, states_NWMU, kept_NWM4U, gates_NWMG, carried_NMU)
        grid, sizes = _tiles(count, steps, rows, units)
        for step in reversed(range(steps)):
            _backward_step[grid](*tensors, step, **sizes)
        inner_NWMU = gates_NWMG[..., 2 * units :] * kept_NWM4U[..., :units]
        before_NKU = states_NWMU[:, :-1].flatten(1, 2)
        weight = torch.cat(
            [
                gates_NWMG[:, 1:].flatten(1, 2)[..., : 2 * units].mT @ before_NKU,
                inner_NWMU[:, 1:].flatten(1, 2).mT @ before_NKU,
            ],
            dim=1,
        )
        outer, inner = (each.sum((1, 2), dtype=torch.float32) for each in (gates_NWMG, inner_NWMU))
        return gates_NWMG, weight, outer, inner


def _tiles(count: int, steps: int, rows: int, units: int) -> tuple[tuple[int, int, int], dict[str, int]]:
    """A launch's grid and the sizes that its kernel takes."""
    tile = NARROW_TILE if units % WIDE_TILE else WIDE_TILE
    grid = (-(-rows // TILE_ROWS), units // tile, count)
    return grid, {
        "steps": steps,
        "rows": rows,
        "UNITS": units,
        "TILE_ROWS": TILE_ROWS,
        "TILE": tile,
        "num_stages": LOADS_AHEAD,
    }


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):
    return 2 * _sigmoid(2 * x) - 1


@triton.jit
def _tile(step, steps, rows, UNITS: tl.constexpr, TILE_ROWS: tl.constexpr, TILE: tl.constexpr):
    """Which recurrence, its states of this tile and those of the first step through a product; which rows there are,
    where they stand among all at this step, and where this tile's states stand in what is carried."""
    one = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    unit = tl.program_id(1) * TILE + tl.arange(0, TILE)
    place = (one * steps + step) * rows + row
    own = (one * rows + row)[:, None] * UNITS + unit[None, :]
    return one, unit, tl.arange(0, TILE), (row < rows)[:, None], place, own


@triton.jit(do_not_specialize=["step"])
def _forward_step(
    gates, weight, outer, inner, states, kept, carried, step,
    steps, rows, UNITS: tl.constexpr, TILE_ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    one, unit, offset, there, place, own = _tile(step, steps, rows, UNITS, TILE_ROWS, TILE)

    reset = tl.full((TILE_ROWS, TILE), 0, tl.float32)
    update = tl.full((TILE_ROWS, TILE), 0, tl.float32)
    new = tl.full((TILE_ROWS, TILE), 0, tl.float32)
    if step > 0:
        for begin in range(0, UNITS, TILE):
            before = tl.load(states + (place - rows)[:, None] * UNITS + (begin + offset)[None, :], there, 0.0)
            matrix = weight + (one * 3 * UNITS + unit)[None, :] * UNITS + (begin + offset)[:, None]
            reset = tl.dot(before, tl.load(matrix), reset)
            update = tl.dot(before, tl.load(matrix + UNITS * UNITS), update)
            new = tl.dot(before, tl.load(matrix + 2 * UNITS * UNITS), new)

    given = gates + place[:, None] * (3 * UNITS) + unit[None, :]
    bias = outer + one * 3 * UNITS + unit
    reset = _sigmoid(reset + tl.load(given, there, 0.0).to(tl.float32) + tl.load(bias)[None, :])
    update = _sigmoid(update + tl.load(given + UNITS, there, 0.0).to(tl.float32) + tl.load(bias + UNITS)[None, :])
    product = new + tl.load(inner + one * UNITS + unit)[None, :]
    given_new = tl.load(given + 2 * UNITS, there, 0.0).to(tl.float32) + tl.load(bias + 2 * UNITS)[None, :]
    new = _tanh(given_new + reset * product)
    state = new + update * (tl.load(carried + own, there, 0.0) - new)

    tl.store(carried + own, state, there)
    dtype = states.dtype.element_ty
    tl.store(states + place[:, None] * UNITS + unit[None, :], state.to(dtype), there)
    keep = kept + place[:, None] * (4 * UNITS) + unit[None, :]
    tl.store(keep, reset.to(dtype), there)
    tl.store(keep + UNITS, update.to(dtype), there)
    tl.store(keep + 2 * UNITS, new.to(dtype), there)
    tl.store(keep + 3 * UNITS, product.to(dtype), there)


@triton.jit(do_not_specialize=["step"])
def _backward_step(
    wanted, weight, states, kept, gates, carried, step,
    steps, rows, UNITS: tl.constexpr, TILE_ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    one, unit, offset, there, place, own = _tile(step, steps, rows, UNITS, TILE_ROWS, TILE)
    dtype = states.dtype.element_ty

    slope = tl.load(wanted + place[:, None] * UNITS + unit[None, :], there, 0.0).to(tl.float32)
    if step < steps - 1:
        after = (place + rows)[:, None]
        total = tl.full((TILE_ROWS, TILE), 0, tl.float32)
        for begin in range(0, UNITS, TILE):
            column = (begin + offset)[None, :]
            matrix = weight + (one * 3 * UNITS + begin + offset)[:, None] * UNITS + unit[None, :]
            gate = gates + after * (3 * UNITS) + column
            total = tl.dot(tl.load(gate, there, 0.0), tl.load(matrix), total)
            total = tl.dot(tl.load(gate + UNITS, there, 0.0), tl.load(matrix + UNITS * UNITS), total)
            inside = tl.load(gate + 2 * UNITS, there, 0.0) * tl.load(kept + after * (4 * UNITS) + column, there, 0.0)
            total = tl.dot(inside, tl.load(matrix + 2 * UNITS * UNITS), total)
        passed = tl.load(kept + after * (4 * UNITS) + UNITS + unit[None, :], there, 0.0).to(tl.float32)
        slope += total + tl.load(carried + own, there, 0.0) * passed
    tl.store(carried + own, slope, there)

    keep = kept + place[:, None] * (4 * UNITS) + unit[None, :]
    reset = tl.load(keep, there, 0.0).to(tl.float32)
    update = tl.load(keep + UNITS, there, 0.0).to(tl.float32)
    new = tl.load(keep + 2 * UNITS, there, 0.0).to(tl.float32)
    product = tl.load(keep + 3 * UNITS, there, 0.0).to(tl.float32)
    before = tl.full((TILE_ROWS, TILE), 0, tl.float32)
    if step > 0:
        before = tl.load(states + (place - rows)[:, None] * UNITS + unit[None, :], there, 0.0).to(tl.float32)
    new_slope = slope * (1 - update) * (1 - new * new)
    give = gates + place[:, None] * (3 * UNITS) + unit[None, :]
    tl.store(give, (new_slope * product * reset * (1 - reset)).to(dtype), there)
    tl.store(give + UNITS, (slope * (before - new) * update * (1 - update)).to(dtype), there)
    tl.store(give + 2 * UNITS, new_slope.to(dtype), there)
