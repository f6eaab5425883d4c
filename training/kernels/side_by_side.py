"""The units of the hybrid layer side by side: their attentions one after the other, all their recurrences at once.

Put on a network from outside, where one process has the whole layer and keeps its activations; what it computes stays.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.attention import RowPositions
from model.hybrid import HybridLayer, HybridUnit
from model.network import HybridModel
from model.recurrence import BidirectionalRecurrence, Frame
from training.kernels.gru import recur_together, takes

DIRECTIONS = ("l0", "l0_reverse")


class UnitsTogether:
    """What stands for a hybrid layer's forward pass: [B,S,D] → [B,S,D], as the layer's own.

    Around the recurrences' steps stand two functions that a compiler may take: `make_gates`, once for all units, and
    `add_unit`, once for each. In one graph, all units' sum took a tenth of a step (docs/benchmarks.md).
    """

    def __init__(self, layer: HybridLayer) -> None:
        self.layer = layer
        self.make_gates, self.add_unit = make_gates, add_unit

    def compile(self, **options: Any) -> None:
        """Compile those two, with `torch.compile`'s options."""
        self.make_gates, self.add_unit = torch.compile(make_gates, **options), torch.compile(add_unit, **options)

    def __call__(self, hidden_BSD: Tensor, lengths_B: Tensor | None, positions: RowPositions) -> Tensor:
        units = [cast("HybridUnit", unit) for unit in self.layer.units]
        mixed = [unit.attention(hidden_BSD, positions) for unit in units]
        gates_NWMG, parameters, frame = self.make_gates([unit.recurrence for unit in units], mixed, lengths_B)
        # Gradients of what is unbound are stacked; those of indices would be added up, each as large as all.
        states = recur_together(gates_NWMG, *parameters).unbind()
        directions = zip(states[::2], states[1::2], strict=True)
        shares = torch.softmax(self.layer.mix, dim=0).unbind()
        total_BSD = torch.zeros_like(hidden_BSD)
        for parts in zip(shares, units, mixed, directions, strict=True):  # as `layer.weigh`, without a stack of all
            total_BSD = self.add_unit(total_BSD, hidden_BSD, frame, *parts)
        return total_BSD


def run_units_together(network: HybridModel) -> None:
    """Let a network's hybrid layer run its recurrences at once; not one of a width that the kernels do not take."""
    layer: nn.Module = network.hybrid  # which another stage of a pipeline may hold
    if isinstance(layer, HybridLayer) and takes(network.config.d_model // 2):
        vars(layer)["forward"] = UnitsTogether(layer)


def make_gates(
    recurrences: list[BidirectionalRecurrence], inputs: list[Tensor], lengths_B: Tensor | None
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Frame]:
    """What inputs [B,S,D] give to the gates of their GRUs [N,W,M,G], two directions each, the parameters that
    `recur_together` takes with it, and where the windows lie."""
    windows = [each.windows(hidden_BSD, lengths_B) for each, hidden_BSD in zip(recurrences, inputs, strict=True)]
    inputs_NWMD = torch.stack([each.transpose(0, 1) for two in windows for each in (two.forward_MWD, two.backward_MWD)])
    parameters = [each.parameters_of(suffix) for each in recurrences for suffix in DIRECTIONS]
    into_NGD, among_NGU, into_NG, among_NG = (torch.stack(each) for each in zip(*parameters, strict=True))
    gates_NWMG = (inputs_NWMD.flatten(1, 2) @ into_NGD.mT).unflatten(1, inputs_NWMD.shape[1:3])
    units = among_NGU.shape[-1]
    reset_update_NG, inner_NU = among_NG.float().split([2 * units, units], dim=1)
    outer_NG = into_NG.float() + functional.pad(reset_update_NG, (0, units))
    return gates_NWMG, (among_NGU.to(gates_NWMG.dtype), outer_NG, inner_NU), windows[0].frame


def add_unit(
    total_BSD: Tensor,
    hidden_BSD: Tensor,
    frame: Frame,
    share: Tensor,
    unit: HybridUnit,
    mixed_BSD: Tensor,
    directions: tuple[Tensor, Tensor],
) -> Tensor:
    """A unit's share added to the total, from its parts and its recurrence's states, [W,M,U] a direction."""
    recurred_BSD = frame.join(*(states_WMU.transpose(0, 1) for states_WMU in directions))
    return total_BSD + share * unit.add(hidden_BSD, mixed_BSD, recurred_BSD)
