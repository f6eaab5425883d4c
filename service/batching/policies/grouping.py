"""Which of the waiting requests make the best batch: the most answers in time for each second of the model.

A batch is padded to its longest request, so candidates are: a line to begin with, and a size. It takes the requests
that are due first in that line, then in the lines of shorter ones, of those that the batch still answers in time. Among
candidates the one with the most weight a second wins, seconds counting a little more than in proportion.

                 due first ──▶
    512 tokens   ■ ■ ■ ■ ■ ■       candidate (512, 8): ■ ■ ■ ■ ■ ■ and ▪ ▪
    410          ▪ ▪ ▪             candidate (410, 3): ▪ ▪ ▪
    130          · · · ·           candidate (130, 4): · · · ·

All are scored at once, in numpy, from at most LOOKED_AT requests of a line and as many for a candidate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from service.batching.lines import LOOKED_AT
from service.batching.policies.policy import BatchLimits

HASTE = 1.03
"""Power of seconds that weight is divided by. Of batches that pay alike the shorter is better: whoever comes meanwhile
waits less. With costs of a CPU, where a batch of three pays what one of thirty does, a point more is in time than with
1; with those of a GPU half a point less under overload. From 1.1 on GPUs lose several."""

Table = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Seconds of batches by rows and tokens."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Group:
    """Requests that may share a batch, those of the longest line first, and in a line those that are due first."""

    tokens: np.ndarray
    """FP64 [R], as the others."""

    slack_s: np.ndarray
    """Until its deadline, from when a batch could begin."""

    weights: np.ndarray
    slots: np.ndarray
    starts: np.ndarray
    """INT [L]: where each line begins."""

    work_s: np.ndarray | None = None
    """Of the machine, that each takes after the batch: what its answer adds to decode steps. None: no answers."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Choice:
    """A batch that could be made."""

    indices: np.ndarray
    """INT [n] of the group's requests."""

    seconds: float
    score: float
    """Weight of what it answers in time, a second to the power of `haste`."""


def best_batch(group: Group, table: Table, limits: BatchLimits, free_slots: int, haste: float = HASTE) -> Choice | None:
    """The best batch for the slots that are free; None where no request can be answered in time."""
    count = len(group.tokens)
    sizes_N = np.arange(1, min(limits.rows, count, max(free_slots, 1)) + 1)
    longest_L = np.maximum.reduceat(group.tokens, group.starts)
    seconds_LN = table(sizes_N, longest_L[:, None])
    looked_at = min(LOOKED_AT, count)
    window_LW = group.starts[:, None] + np.arange(looked_at)
    # Lines near the end see fewer: behind the last request come some that are never in time.
    overdue_LW = np.concatenate((-group.slack_s, np.full(looked_at, np.inf)))[window_LW]
    alike = group.work_s is None and group.weights.min() == group.weights.max()
    if not alike:
        # Behind the lines of one class of service stand those of the next, which begin with longer requests again.
        overdue_LW[np.append(group.tokens, np.zeros(looked_at))[window_LW] > longest_L[:, None]] = np.inf
    # n requests are in time if the n-th most patient is.
    allowed_LN = np.sort(overdue_LW, axis=1)[:, : len(sizes_N)] <= -seconds_LN
    fits_LN = sizes_N * longest_L[:, None] <= limits.tokens
    if limits.seconds is not None:
        fits_LN &= seconds_LN <= limits.seconds
    fits_LN[:, 0] = True
    allowed_LN &= fits_LN
    if not allowed_LN.any():
        return None
    weights_LN, work_LN = sizes_N * group.weights[0], seconds_LN
    if not alike:
        within_LW = np.minimum(window_LW, count - 1)
        taken_LWN = _taken(-overdue_LW, seconds_LN, sizes_N)
        weights_LN = np.einsum("lwn,lw->ln", taken_LWN, group.weights[within_LW])
        if group.work_s is not None:
            work_LN = seconds_LN + np.einsum("lwn,lw->ln", taken_LWN, group.work_s[within_LW])
    scores_LN = np.where(allowed_LN, weights_LN / work_LN**haste, 0.0)
    line, size = divmod(int(scores_LN.argmax()), len(sizes_N))
    seconds = float(seconds_LN[line, size])
    indices = int(group.starts[line]) + np.flatnonzero(overdue_LW[line] <= -seconds)[: size + 1]
    indices = indices[group.slots[indices].cumsum() <= free_slots]
    return Choice(indices=indices, seconds=seconds, score=float(scores_LN[line, size]))


def _taken(slack_LW: np.ndarray, seconds_LN: np.ndarray, sizes_N: np.ndarray) -> np.ndarray:
    """Of every candidate, the first n requests that are in time: BOOL [L,W,N]."""
    in_time_LWN: np.ndarray = slack_LW[:, :, None] >= seconds_LN[:, None, :]
    return in_time_LWN & (in_time_LWN.cumsum(axis=1, dtype=np.int16) <= sizes_N)
