"""`generate()` of Hugging Face's transformers: PyTorch, eager, float32, greedy, with its cache."""

from __future__ import annotations

import numpy as np
import torch

from deploy.benchmark.peers.bart import make_bart
from deploy.benchmark.peers.decoding import measure
from deploy.benchmark.peers.options import DecodingOptions


def main() -> None:
    """Measure and print."""
    options = DecodingOptions()
    network = make_bart(options.seed)

    @torch.inference_mode()
    def generate(sources_BS: np.ndarray, tokens: int) -> int:
        source = torch.from_numpy(sources_BS)
        written_BT = network.generate(
            source,
            attention_mask=torch.ones_like(source),
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            num_beams=1,
            do_sample=False,
        )
        # It begins with the decoder's start token.
        return written_BT[:, 1:].numel()

    measure(generate, options)


if __name__ == "__main__":
    main()
