"""Answers of a whole context from the distributions of its windows: how long the context is does not decide.

Every window says on its own how likely each answer is, and how likely none. Together:

- P(no answer) is the least that any window says: a context lacks an answer only where all of its windows do. That is
  what BERT does with the windows of a long document, whose null score is the smallest of all (Devlin et al. 2019, §4.3
  and the authors' `run_squad.py`; the same in Hugging Face's `postprocess_qa_predictions`).
- Equal texts are one answer. In one window their probabilities add up, for they exclude each other there; of several
  windows the one that says most counts.
- The best answer is the one with the best odds against no answer in some window: windows that are all but sure differ
  by their odds long after their probabilities are alike.
- Scores and P(no answer) sum to 1 at most: where windows are sure of different answers, a lesser answer has what those
  before it leave.

So windows that hold nothing change nothing, a repeated context loses nothing, and of one window all is as its own
distribution says.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

KEPT = 80
"""Answers that are remembered while windows come; more than are ever asked for, because weaker ones may grow."""

MOST_PLACES = 100
"""Of one answer."""

LEAST = 1e-30
"""P(no answer) that odds are divided by at least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where an answer stands: code points of the context."""

    start: int
    end: int
    """Behind its last code point."""

    score: float
    """P(the answer is this one) by the window that shows it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """An answer of the whole context."""

    score: float
    """P(this is the answer)."""

    places: list[Place]
    """Best first; of equal ones the earlier."""


@dataclass(slots=True)
class _Found:
    """What is known of one text so far."""

    score: float = 0.0
    odds: float = 0.0
    """Against no answer, in the window that says most."""

    places: dict[tuple[int, int], float] = field(default_factory=dict)

    def ranked(self) -> list[Place]:
        ordered = sorted(self.places.items(), key=lambda item: (-item[1], item[0]))[:MOST_PLACES]
        return [Place(start=start, end=end, score=score) for (start, end), score in ordered]


@dataclass(slots=True)
class MergedAnswers:
    """Answers of the windows so far. The order of windows makes no difference to scores."""

    none_probability: float = 1.0
    """P(the context holds no answer)."""

    _found: dict[str, _Found] = field(default_factory=dict)

    def add(self, none_probability: float, spans: Iterable[tuple[str, tuple[int, int], float]]) -> None:
        """What one window says: its P(no answer), and of spans their text, as it is compared, place and probability."""
        self.none_probability = min(self.none_probability, none_probability)
        texts: dict[str, dict[tuple[int, int], float]] = {}
        for text, place, probability in spans:
            places = texts.setdefault(text, {})
            places[place] = places.get(place, 0.0) + probability
        for text, places in texts.items():
            found = self._found.setdefault(text, _Found())
            probability = sum(places.values())
            found.score = max(found.score, probability)
            found.odds = max(found.odds, probability / max(none_probability, LEAST))
            for place, probability in places.items():
                found.places[place] = max(found.places.get(place, 0.0), probability)
        if len(self._found) > 8 * KEPT:
            self._found = dict(sorted(self._found.items(), key=lambda item: -item[1].odds)[:KEPT])

    def best(self, count: int) -> list[Candidate]:
        """The best answers, best first; of equal ones that which stands earlier. All of their texts differ."""
        ordered = sorted(
            ((found.odds, found.score, found.ranked()) for found in self._found.values()),
            key=lambda item: (-item[0], -item[1], item[2][0].start, item[2][0].end),
        )
        left, least, candidates = 1.0 - self.none_probability, 1.0, []
        for _, score, places in ordered[:count]:
            score = least = min(score, least, max(0.0, left))
            left -= score
            candidates.append(Candidate(score=score, places=places))
        return candidates
