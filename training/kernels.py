"""Which of PyTorch's GPU kernels a run uses."""

from __future__ import annotations

import torch


def choose_kernels() -> None:
    """TF32 for what is computed in float32; attention by any kernel but cuDNN's.

    Seen with PyTorch 2.11 on H100s, where cuDNN's is the default: of a network trained in bfloat16, decoders, whose
    self-attention takes no mask, learnt heads that read the token before; encoders, whose attention takes a mask of
    the padding, learnt nothing of the kind in 5,000 steps (docs/training.md). Its gradients under a mask have been
    wrong before (github.com/pytorch/pytorch/issues/196678).
    """
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.enable_cudnn_sdp(False)
