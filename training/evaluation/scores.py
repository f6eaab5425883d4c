"""Scores of answers and summaries against their references."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = set(string.punctuation)
CJK = re.compile(r"[一-鿿]")


def normalise(text: str) -> str:
    """SQuAD's official normalisation (Rajpurkar et al. 2016): lower case, no punctuation, articles or double spaces."""
    kept = "".join(character for character in text.lower() if character not in PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", kept).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 where the answer equals any reference after normalisation."""
    return float(any(normalise(answer) == normalise(reference) for reference in references))


def f1(answer: str, references: Sequence[str]) -> float:
    """Best F1 of shared tokens with any reference; Chinese counts by character (as CMRC 2018 does)."""
    return max(_f1(_tokens(answer), _tokens(reference)) for reference in references)


def _tokens(text: str) -> list[str]:
    return CJK.sub(lambda match: f" {match.group()} ", normalise(text)).split()


def _f1(answer: list[str], reference: list[str]) -> float:
    shared = sum((Counter(answer) & Counter(reference)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(answer), shared / len(reference)
    return 2 * precision * recall / (precision + recall)


def rouge(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """ROUGE-1, -2, -L F-measures with stemming, in percent: against the best reference, and the references' mean."""
    from rouge_score.rouge_scorer import RougeScorer

    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(list(names), use_stemmer=True)
    best = dict.fromkeys(names, 0.0)
    mean = dict.fromkeys(names, 0.0)
    for text, own in zip(texts, references, strict=True):
        scores = [scorer.score(reference, text) for reference in own]
        for name in names:
            values = [score[name].fmeasure for score in scores]
            best[name] += 100 * max(values) / len(texts)
            mean[name] += 100 * sum(values) / len(values) / len(texts)
    return {f"{name}_best": best[name] for name in names} | {f"{name}_mean": mean[name] for name in names}


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU against all references (sacreBLEU)."""
    from sacrebleu import corpus_bleu

    most = max(map(len, references))
    # sacreBLEU takes None where a text has fewer references than others.
    streams: Any = [[own[index] if index < len(own) else None for own in references] for index in range(most)]
    return float(corpus_bleu(list(texts), streams).score)
