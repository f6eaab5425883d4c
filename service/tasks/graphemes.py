"""What a reader takes for one character: an answer holds it whole, or not at all.

    👩│👩│👧  e│´  ᄀ│ᅡ  CR│LF        no span begins or ends at such a place

Clusters are Unicode's (UAX 29), as the package `regex` matches them; only the neighbourhood of a place is looked at.
"""

from __future__ import annotations

import regex

CLUSTER = regex.compile(r"\X")
ENDS_ALONE = regex.compile(r"(?rV1)[ -~\p{Han}\p{sc=Latin}\p{sc=Greek}\p{sc=Cyrillic}\p{sc=Hiragana}\p{sc=Katakana}]")
"""The last character whose cluster's end depends on nothing before it: flags are counted in pairs from there."""

REACH = 1_000
"""Code points on either side. No text of use has longer clusters, nor more flags in a row."""


def widen(text: str, start: int, end: int) -> tuple[int, int]:
    """The stretch of whole clusters that holds `text[start:end]`, which is not empty."""
    return (
        start if _is_apart(text, start) else _cluster(text, start)[0],
        end if _is_apart(text, end) else _cluster(text, end - 1)[1],
    )


def _is_apart(text: str, at: int) -> bool:
    """Whether a cluster surely begins at a place: two characters of ASCII are never one, but for CR LF."""
    pair = text[max(0, at - 1) : at + 1]
    return pair.isascii() and pair != "\r\n"


def _cluster(text: str, at: int) -> tuple[int, int]:
    """Where the cluster of a character begins and ends."""
    # A piece of its own: within a whole text the package counts flags back to the beginning.
    nearest = max(0, at - REACH)
    piece, place = text[nearest : at + REACH], at - nearest
    sure = ENDS_ALONE.search(piece, 0, place)
    clusters = CLUSTER.finditer(piece, sure.start() if sure else 0)
    begin, end = next(cluster.span() for cluster in clusters if cluster.end() > place)
    return nearest + begin, nearest + end
