"""What objectives need of a network whose memory is split over processes.

`training/parallel/sequence_heads.py` is it; objectives stand below what is parallel and know no more than this. Each
head takes this process' slices of the memory and gives whole results, equal on every process, yielding while something
of its own is on its way. Shapes: s is a slice of S.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from model.network import HybridModel
from training.turns import Steps


class SliceHeads(Protocol):
    """The heads of a network on slices of the memory."""

    model: HybridModel

    def task_logits(self, memory: Tensor, lengths: Tensor | None = None) -> Steps[Tensor]:
        """Slices [B,s,D] → [B,3]."""

    def emissions(self, memory: Tensor, lengths: Tensor | None = None) -> Steps[Tensor]:
        """Slices [B,s,D] → [B,S,3]."""

    def decoder_states(self, kind: str, memory: Tensor, lengths: Tensor | None, target_ids: Tensor) -> Steps[Tensor]:
        """Slices [B,s,D] and whole targets [B,T] → [B,T,D]."""

    def target_losses(self, states: Tensor, labels: Tensor) -> Steps[Tensor]:
        """Cross-entropy of whole states [B,T,D], [B,T]."""

    def masked_token_losses(self, memory: Tensor, positions: Tensor, labels: Tensor) -> Steps[Tensor]:
        """Cross-entropy at positions of the whole rows, [B,M]."""

    def log_copied(
        self,
        states_BTD: Tensor,
        copy_keys_BsD: Tensor,
        lengths_B: Tensor | None,
        source_Bs: Tensor,
        target_BT: Tensor,
    ) -> Steps[Tensor]:
        """log of the copy distribution's share of given tokens, [B,T]."""

    def mixed(self, states_BTD: Tensor, log_generated_BT: Tensor, log_copied_BT: Tensor) -> Tensor:
        """log of the pointer's mixture, [B,T]."""
