"""Do two versions of the network agree? PyTorch and ONNX, float32 and int8: on random tokens, and on texts.

Both sides answer the same calls (`Runner`): `TorchRunner` on the network itself, `GraphRunner` on exported graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from deploy.parity.difference import Difference, difference
from deploy.parity.feeds import TRIALS, random_rows
from deploy.parity.samples import Source
from model.tokenizer import BOS

DECODER_OF_TASK = {"generation": "generative", "summary": "pointer"}
NEW_TOKENS = 32
"""Length of the greedy texts that are compared."""

FORCED_TOKENS = 6

SMALLEST_SPREAD = 0.05
"""Yardstick of outputs that hardly vary, such as the probabilities of a router that is always sure."""


class Runner(Protocol):
    """One version of the network; arrays as GraphRunner describes them."""

    def lm_logits(self, ids_BS: np.ndarray) -> np.ndarray: ...

    def route(self, ids_BS: np.ndarray) -> np.ndarray: ...

    def encode(self, ids_BS: np.ndarray, lengths_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...

    def emissions(self, ids_BS: np.ndarray, lengths_B: np.ndarray) -> np.ndarray: ...

    def emissions_of_memory(self, ids_BS: np.ndarray, lengths_B: np.ndarray) -> np.ndarray: ...

    def forced(self, kind: str, ids_BS: np.ndarray, lengths_B: np.ndarray, targets_BT: np.ndarray) -> np.ndarray: ...

    def greedy(self, kind: str, ids_BS: np.ndarray, lengths_B: np.ndarray, max_new_tokens: int) -> list[list[int]]: ...


def graph_differences(graph: str, reference: Runner, other: Runner, vocabulary: int) -> list[Difference]:
    """What a graph computes, or a chain of graphs in which it is a link, on random batches of several shapes."""
    found = []
    for seed, lengths in enumerate(TRIALS):
        ids_BS, lengths_B = random_rows(vocabulary, lengths, seed)
        expected, outputs = (call(graph, each, ids_BS, lengths_B) for each in (reference, other))
        found += [
            difference(name, expected[name], outputs[name], lengths_B if name in BY_TOKEN else None)
            for name in expected
        ]
    return found


def call(graph: str, runner: Runner, ids_BS: np.ndarray, lengths_B: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs by which a graph is judged; a decoder's are its logits over a few random tokens."""
    if graph == "hybrid_lm":
        return {"token logits": runner.lm_logits(ids_BS)}
    if graph == "router":
        return {"task probabilities": runner.route(ids_BS)}
    if graph == "encoder":
        memory, probabilities = runner.encode(ids_BS, lengths_B)
        return {"memory": memory, "task probabilities": probabilities}
    if graph == "qa":
        return {"emissions": runner.emissions(ids_BS, lengths_B)}
    if graph == "extractive":
        return {"emissions": runner.emissions_of_memory(ids_BS, lengths_B)}
    kind = graph.partition("_")[0]
    targets_BT, _ = random_rows(int(ids_BS.max()) + 1, [FORCED_TOKENS] * len(ids_BS))
    return {f"{kind} logits": runner.forced(kind, ids_BS, lengths_B, targets_BT)}


BY_TOKEN = ("token logits", "memory", "emissions")
"""Outputs [B,S,…], of which only a row's own tokens count."""

CHAINS = {
    "extractive": ("encoder",),
    "generative_prefill": ("encoder", "generative_step"),
    "generative_step": ("encoder", "generative_prefill"),
    "pointer_prefill": ("encoder", "pointer_step"),
    "pointer_step": ("encoder", "pointer_prefill"),
}
"""Graphs that a graph's comparison runs beside it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How a bundle's answers compare with the trained network's."""

    reference: str
    samples: int
    largest_error: dict[str, float]
    """By output, absolute: logits of the three kinds, emissions, task probabilities."""

    standard_deviation: dict[str, float]
    """Of the reference's outputs, the errors' yardstick."""

    same_answers: dict[str, float]
    """By task: share of equal greedy texts, best spans and routes."""

    same_next_tokens: float
    """Share of equal most likely tokens where both read the reference's texts."""

    def check(self, tolerance: float) -> None:
        """Raises ValueError naming the outputs whose error is above `tolerance` standard deviations."""
        far = [
            f"{name} by {error:.4g}"
            for name, error in self.largest_error.items()
            if error > tolerance * max(self.standard_deviation[name], SMALLEST_SPREAD)
        ]
        if far:
            raise ValueError(f"the export differs from PyTorch by more than {tolerance:g} deviations: {', '.join(far)}")


def measure(
    reference: Runner,
    other: Runner,
    sources: Sequence[Source],
    best_span: Callable[[np.ndarray, slice], tuple[int, int] | None],
) -> Agreement:
    """Compare two runners on texts, one row at a time.

    `best_span` decodes one row's emissions [S,3] over the context's positions.
    """
    found: dict[str, list[Difference]] = {}
    same: dict[str, list[bool]] = {}
    next_tokens: list[bool] = []
    for source in sources:
        ids_BS, lengths_B = source.ids[None], np.array([len(source.ids)])
        pair = (reference.lm_logits(ids_BS), other.lm_logits(ids_BS))
        _note(found, difference("token logits", *pair))
        routes = (reference.route(ids_BS), other.route(ids_BS))
        _note(found, difference("task probabilities", *routes))
        same.setdefault("route", []).append(bool(routes[0].argmax() == routes[1].argmax()))
        if source.task == "qa":
            rows = [each.emissions(ids_BS, lengths_B) for each in (reference, other)]
            _note(found, difference("emissions", rows[0], rows[1]))
            spans = [best_span(row[0], source.context) for row in rows]
            same.setdefault("qa", []).append(spans[0] == spans[1])
            continue
        kind = DECODER_OF_TASK[source.task]
        texts = [each.greedy(kind, ids_BS, lengths_B, NEW_TOKENS)[0] for each in (reference, other)]
        same.setdefault(source.task, []).append(texts[0] == texts[1])
        targets_BT = np.array([[BOS, *texts[0]][:NEW_TOKENS]])
        logits = [each.forced(kind, ids_BS, lengths_B, targets_BT) for each in (reference, other)]
        _note(found, difference(f"{source.task} logits", logits[0], logits[1]))
        next_tokens += (logits[0].argmax(-1) == logits[1].argmax(-1)).ravel().tolist()
    return Agreement(
        reference="PyTorch, float32",
        samples=len(sources),
        largest_error={name: max(each.largest for each in group) for name, group in found.items()},
        standard_deviation={name: float(np.mean([each.spread for each in group])) for name, group in found.items()},
        same_answers={name: _share(group) for name, group in same.items()},
        same_next_tokens=_share(next_tokens),
    )


def _note(found: dict[str, list[Difference]], each: Difference) -> None:
    found.setdefault(each.output, []).append(each)


def _share(matches: Iterable[bool]) -> float:
    values = list(matches)
    return sum(values) / len(values) if values else 1.0
