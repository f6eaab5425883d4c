"""The units of the hybrid layer side by side: their attentions one after the other, all their recurrences at once.

Put on a network from outside, where one process has the whole layer and keeps its activations; what it computes stays.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.attention import Places
from model.hybrid import HybridLayer, HybridUnit
from model.network import HybridModel
from model.recurrence import BidirectionalRecurrence, Frame
from training.gru import recur_together, takes

DIRECTIONS = ("l0", "l0_reverse")


class UnitsTogether:
    """What stands for a hybrid layer's forward pass: [B,S,D] → [B,S,D], as the layer's own.

    Between the attentions and the recurrences' steps lie two functions that a compiler may take: how the recurrences
    read, once for all, and what a unit adds, once for each. In one piece, it would keep all units' rows in registers.
    """

    def __init__(self, layer: HybridLayer) -> None:
        self.layer = layer
        self.read, self.add_unit = read, add_unit

    def compile(self, **options: Any) -> None:
        """Compile those two, with `torch.compile`'s options."""
        self.read, self.add_unit = torch.compile(read, **options), torch.compile(add_unit, **options)

    def __call__(self, hidden_BSD: Tensor, lengths_B: Tensor | None, places: Places) -> Tensor:
        units = [cast("HybridUnit", unit) for unit in self.layer.units]
        mixed = [unit.attention(hidden_BSD, places) for unit in units]
        gates_NWMG, parameters, frame = self.read([unit.recurrence for unit in units], mixed, lengths_B)
        states_NMWU = recur_together(gates_NWMG, *parameters).transpose(1, 2)
        shares_U = torch.softmax(self.layer.mix, dim=0)
        total_BSD = torch.zeros_like(hidden_BSD)
        for index, unit in enumerate(units):
            directions = states_NMWU[2 * index], states_NMWU[2 * index + 1]
            total_BSD = self.add_unit(total_BSD, shares_U[index], unit, hidden_BSD, mixed[index], directions, frame)
        return total_BSD


def run_units_together(network: HybridModel) -> None:
    """Let a network's hybrid layer run its recurrences at once; not one of a width that the kernels do not take."""
    layer: nn.Module = network.hybrid  # which another stage of a pipeline may hold
    if isinstance(layer, HybridLayer) and takes(network.config.d_model // 2):
        vars(layer)["forward"] = UnitsTogether(layer)


def read(
    recurrences: list[BidirectionalRecurrence], inputs: list[Tensor], lengths_B: Tensor | None
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Frame]:
    """What inputs [B,S,D] give to the gates of their GRUs [N,W,M,G], two directions each, the parameters that
    `recur_together` takes with it, and where the windows lie."""
    windows = [each.windows(hidden_BSD, lengths_B) for each, hidden_BSD in zip(recurrences, inputs, strict=True)]
    read_NWMD = torch.stack([each.transpose(0, 1) for own in windows for each in (own.forward_MWD, own.backward_MWD)])
    own = [each.parameters_of(suffix) for each in recurrences for suffix in DIRECTIONS]
    into_NGD, among_NGU, into_NG, among_NG = (torch.stack(each) for each in zip(*own, strict=True))
    gates_NWMG = (read_NWMD.flatten(1, 2) @ into_NGD.mT).unflatten(1, read_NWMD.shape[1:3])
    units = among_NGU.shape[-1]
    outer_NG, inner_NU = among_NG.split([2 * units, units], dim=1)
    parameters = among_NGU.to(gates_NWMG.dtype), into_NG + functional.pad(outer_NG, (0, units)), inner_NU
    return gates_NWMG, parameters, windows[0].frame


def add_unit(
    total_BSD: Tensor,
    share: Tensor,
    unit: HybridUnit,
    hidden_BSD: Tensor,
    mixed_BSD: Tensor,
    directions: tuple[Tensor, Tensor],
    frame: Frame,
) -> Tensor:
    """A unit's share added to the total, from its parts and its recurrence's states on windows [M,W,U]."""
    return total_BSD + share * unit.add(hidden_BSD, mixed_BSD, frame.join(*directions))
