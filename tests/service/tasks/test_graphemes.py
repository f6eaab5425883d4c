"""Answers hold whole graphemes, whatever the model would cut."""

from __future__ import annotations

import time

import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st

from service.tasks.graphemes import widen

CLUSTERS = [
    "👩‍👩‍👧",
    "🇫🇷",
    "e\u0301\u0323",
    "ᄀ\u1161\u11a8",
    "\r\n",
    "क्ष",
    "👍🏽",
    "❤️‍🔥",
    "1️⃣",
    "🏴\U000e0067\U000e0062\U000e007f",
    "ำ",
    "\u0600१",
    "a",
    "光",
    " ",
]
TEXTS = st.one_of(
    st.text(min_size=1),
    st.lists(st.sampled_from(CLUSTERS), min_size=1, max_size=30).map("".join),
    st.text(alphabet="🇫🇷👩\u200d🏽e\u0301ᄀ\u1161\u11a8क्षa\r\n", min_size=1),
)


@given(TEXTS, st.data())
@example("🇫🇷🇩🇪" * 100, None)
def test_a_span_grows_to_the_clusters_that_it_touches(text: str, data: st.DataObject | None) -> None:
    borders = [0, *(match.end() for match in regex.finditer(r"\X", text))]
    start = data.draw(st.integers(0, len(text) - 1)) if data else len(text) - 3
    end = data.draw(st.integers(start + 1, len(text))) if data else len(text) - 1
    assert widen(text, start, end) == (max(b for b in borders if b <= start), min(b for b in borders if b >= end))


@pytest.mark.parametrize("cluster", [each for each in CLUSTERS if len(each) > 1])
def test_no_part_of_a_cluster_is_an_answer(cluster: str) -> None:
    text = f"It was {cluster}."
    for at in range(7, 7 + len(cluster)):
        assert widen(text, at, at + 1) == (7, 7 + len(cluster))


@pytest.mark.parametrize("text", ["a" * 1_000_000, "🇫" * 1_000_000, "a" + "\u0301" * 1_000_000, "光" * 1_000_000])
def test_only_the_neighbourhood_is_looked_at(text: str) -> None:
    begun = time.thread_time()
    for at in range(0, len(text), 20_000):
        widen(text, at, at + 1)
    assert time.thread_time() - begun < 2
