"""What a request takes alone, on the very server that is measured: deadlines are multiples of it."""

from __future__ import annotations

import numpy as np

from deploy.benchmark.questions import SizedQuestions
from deploy.benchmark.replay import one_by_one

LENGTHS = 8
REPEATS = 5


async def unbatched_s(url: str, questions: SizedQuestions, tokens: np.ndarray, path: str = "/v1/qa") -> np.ndarray:
    """Seconds of each request alone: FP64 [R], from medians of a few lengths, which are asked for in turns.

    Raises ValueError where the server does not answer one.
    """
    lengths = np.unique(np.linspace(tokens.min(), tokens.max(), LENGTHS).round().astype(int))
    asked = np.tile(lengths, REPEATS + 1)
    seconds = await one_by_one(url, questions.bodies(asked), path)
    # The first time of each does not count: it takes memory that later ones find.
    medians_s = np.median(seconds.reshape(REPEATS + 1, -1)[1:], axis=0)
    # A longer request takes no less: what says otherwise is noise.
    return np.interp(tokens, lengths, np.maximum.accumulate(medians_s))
