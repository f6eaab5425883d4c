"""The units of the hybrid layer side by side: their attentions one after the other, all their recurrences at once.

Put on a network from outside, where one process has the whole layer and keeps its activations; what it computes stays.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.attention import Places
from model.hybrid import HybridLayer, HybridUnit
from model.network import HybridModel
from model.recurrence import BidirectionalRecurrence
from training.gru import recur_together, takes

DIRECTIONS = ("l0", "l0_reverse")


def run_units_together(network: HybridModel) -> None:
    """Let a network's hybrid layer run its recurrences at once; not one of a width that the kernels do not take."""
    layer: nn.Module = network.hybrid  # which another stage of a pipeline may hold
    if isinstance(layer, HybridLayer) and takes(network.config.d_model // 2):
        vars(layer)["forward"] = partial(_forward, layer)


def _forward(layer: HybridLayer, hidden_BSD: Tensor, lengths_B: Tensor | None, places: Places) -> Tensor:
    """[B,S,D] → [B,S,D], as the layer's own."""
    units = [cast("HybridUnit", unit) for unit in layer.units]
    recurrences = [unit.recurrence for unit in units]
    mixed = [unit.attention(hidden_BSD, places) for unit in units]
    recurred = recur(recurrences, mixed, lengths_B)
    return layer.weigh([unit.add(hidden_BSD, *parts) for unit, *parts in zip(units, mixed, recurred, strict=True)])


def recur(recurrences: list[BidirectionalRecurrence], inputs: list[Tensor], lengths_B: Tensor | None) -> list[Tensor]:
    """What each GRU makes of its input, [B,S,D] → [B,S,2U] each; all of one size."""
    windows = [each.windows(hidden_BSD, lengths_B) for each, hidden_BSD in zip(recurrences, inputs, strict=True)]
    gates, weights, biases = [], [], []
    for recurrence, own in zip(recurrences, windows, strict=True):
        for suffix, read_MWD in zip(DIRECTIONS, (own.forward_MWD, own.backward_MWD), strict=True):
            into_GD, among_GU, into_G, among_G = recurrence.parameters_of(suffix)
            outer_G, inner_U = among_G.split([2 * recurrence.units, recurrence.units])
            bias_G = into_G + functional.pad(outer_G, (0, recurrence.units))
            gates.append(functional.linear(read_MWD.transpose(0, 1), into_GD, bias_G))
            weights.append(among_GU)
            biases.append(inner_U)
    gates_NWMG = torch.stack(gates)
    del gates  # as large again
    dtype = gates_NWMG.dtype
    states_NWMU = recur_together(gates_NWMG, torch.stack(weights).to(dtype), torch.stack(biases).to(dtype))
    states_NMWU = states_NWMU.transpose(1, 2)
    return [own.join(states_NMWU[2 * index], states_NMWU[2 * index + 1]) for index, own in enumerate(windows)]
