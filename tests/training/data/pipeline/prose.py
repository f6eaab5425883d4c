"""Made prose that passes the quality rules, no two texts alike, and files of it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

from tests.training.tiny_corpora import NAMES, WORDS

FRAMES = (
    "The {0} of the {1} was {2} by {3} with a {4} that nobody in the {5} had seen.",
    "In {3} they have a {0}, and it is said to be as old as the {1} and the {2} of the {4}.",
    "{3} went to the {0} with the {1}, for the {2} had to be {4} before the {5}.",
    "It was the {0} that {3} wanted, and the {1} of {2} lay on the {4}.",
)
CHINESE = (
    "在{0}的那一年，人們和{1}一起到了{2}的河邊。",
    "這是{0}中最大的一座{1}，有不少人為了{2}而來。",
    "他與{0}的朋友在{1}上住了三年，之後{2}也不在了。",
)
PLACES = (
    "金山、白水、長橋、青田、南林、東湖、北門、西塘、高嶺、"
    "大同、平安、新竹、松江、海寧、石城、桃園、花溪、龍泉、雲台、月灣"
)


def english(seed: int | str, sentences: int = 14) -> str:
    """English-like paragraphs."""
    chance = random.Random(f"prose {seed}")
    made = []
    for _ in range(sentences):
        words = chance.sample(WORDS, 5)
        made.append(chance.choice(FRAMES).format(*words[:3], chance.choice(NAMES), *words[3:]))
    half = sentences // 2
    return " ".join(made[:half]) + "\n" + " ".join(made[half:])


def chinese(seed: int | str, sentences: int = 12) -> str:
    """Chinese-like paragraphs."""
    chance, places = random.Random(f"prose {seed}"), PLACES.split("、")
    return "".join(chance.choice(CHINESE).format(*chance.sample(places, 3)) for _ in range(sentences))


def write_texts(path: Path, texts: Iterable[str], prefix: str = "t") -> None:
    """A file of JSON lines with titles."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"title": f"{prefix}{n}", "text": text}, ensure_ascii=False) for n, text in enumerate(texts))
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
