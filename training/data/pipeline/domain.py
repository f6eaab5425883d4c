"""How near a document is to a domain: TF-IDF, in features that need no vocabulary and so no memory that grows.

    x(d)       hashed counts of words and pairs of Chinese characters, 1 + ln(count), times idf, of length 1
    direction  mean of x over the seeds, less its part along the corpus' mean: what sets the seeds apart
    score(d)   x(d) · direction

Salton & Buckley 1988 for the weights; taking the corpus off is Rocchio's idea (1971).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from training.data.pipeline.words import split_words

DOCUMENTS_AT_ONCE = 64
FIRST_CHINESE = "\u3040"


def features_of(text: str) -> Iterator[str]:
    """Words in lower case, and every pair of neighbouring Chinese characters."""
    before = ""
    for word in split_words(text.lower()):
        if word >= FIRST_CHINESE and len(word) == 1:
            if before:
                yield before + word
            before = word
        else:
            before = ""
            yield word


@lru_cache(maxsize=2)
def _vectorizer(features: int) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(analyzer=features_of, n_features=features, norm=None, alternate_sign=False)


def counts_of(texts: list[str], features: int) -> csr_matrix:
    """Counts [texts, features]."""
    return _vectorizer(features).transform(texts)


def inverse_frequencies(frequencies: np.ndarray, documents: int) -> np.ndarray:
    """scikit-learn's smoothed idf from document frequencies [features]."""
    return np.log((1 + documents) / (1 + frequencies)) + 1


def weighted(counts: csr_matrix, idf: np.ndarray) -> csr_matrix:
    """x(d) of every row."""
    from sklearn.preprocessing import normalize

    x = counts.astype(np.float64)
    x.data = (1 + np.log(x.data)) * idf[x.indices]
    return normalize(x, copy=False)


def direction_of(seeds: Iterable[str], idf: np.ndarray, background: np.ndarray, contrast: float) -> np.ndarray:
    """The direction [features], of length 1.

    Args:
        seeds: texts of the domain, at least one.
        idf: [features].
        background: the corpus' own direction [features], of length 1.
        contrast: part of the seeds' share of it that is taken off; with 1 the average document scores about 0.
    """
    total = np.zeros(len(idf))
    for batch in in_batches(seeds):
        total += np.asarray(weighted(counts_of(batch, len(idf)), idf).sum(axis=0)).ravel()
    total /= np.linalg.norm(total) or 1.0
    direction = total - contrast * float(total @ background) * background
    return direction / (np.linalg.norm(direction) or 1.0)


def in_batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of a few texts."""
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == DOCUMENTS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
