"""Questions and summaries made from plain paragraphs.

    sentence 1 … Paris … | sentence 2 … Paris … | sentence 3
                                  │ taken out, the span becomes a wh-word
    context: sentences 1, 3       question: "sentence 2 … what city … ?"     answer: Paris in sentence 1

A cloze question needs an answer that a second sentence of the passage names too (Lewis et al. 2019, "Unsupervised
Question Answering by Cloze Translation", without the translation). A lead is a passage's first or most central
sentence with the passage as its source (Zhang et al. 2020, "PEGASUS").
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator

from training.data.readers import Answer, Pair, Question
from training.data.splits import WORD

SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[\"'“(]?[A-Z0-9])|(?<=[。！？])\s*|\n+")
ENTITY = re.compile(
    r"(?:[A-Z][\w'’.-]*[\w])(?:\s+(?:of|the|de|von|and)?\s*[A-Z][\w'’-]*\w)*"
    r"|\b\d[\d,.]*\d(?:\s(?:million|billion|percent|years|km|miles|people))?|“[^”]{3,40}”|\"[^\"]{3,40}\""
)
ENTITY_ZH = re.compile(r"《[^》]{2,20}》|「[^」]{2,20}」|\d+(?:年(?:\d+月(?:\d+日)?)?|人|公里|米|萬|万)?")
YEAR = re.compile(r"(1\d|20)\d\d年?$")
PASSAGE_CHARACTERS = (300, 1_100)
PASSAGE_CHARACTERS_ZH = (120, 450)
STOP_WORDS = frozenset((
    "a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "has", "he", "in", "is", "it", "its", "of", "on",
    "or", "she", "that", "the", "they", "to", "was", "were", "with",
))  # fmt: skip


def passages(text: str, limits: tuple[int, int]) -> Iterator[list[str]]:
    """Sentences of consecutive paragraphs, in passages of a length between `limits` characters."""
    sentences: list[str] = []
    size = 0
    for sentence in (part.strip() for part in SENTENCE.split(text)):
        if not sentence:
            continue
        if size + len(sentence) > limits[1]:
            if size >= limits[0]:
                yield sentences
            sentences, size = [], 0
        sentences.append(sentence)
        size += len(sentence) + 1
    if size >= limits[0]:
        yield sentences


def cloze_question(sentences: list[str], chance: random.Random, *, document: str, chinese: bool) -> Question | None:
    """A question whose answer stands in another sentence of the passage, or None where there is none."""
    pattern = ENTITY_ZH if chinese else ENTITY
    joint = "" if chinese else " "
    order = [index for index, sentence in enumerate(sentences) if 30 <= len(sentence) * (3 if chinese else 1) <= 260]
    chance.shuffle(order)
    for index in order:
        sentence = sentences[index]
        context = joint.join(sentences[:index] + sentences[index + 1 :])
        spans = [m for m in pattern.finditer(sentence) if 2 <= len(m.group()) <= 60 and m.group() in context]
        spans = [m for m in spans if sentence.count(m.group()) == 1]  # a second one would tell the answer
        spans = [m for m in spans if m.group().lower() not in STOP_WORDS and (m.start() > 0 or " " in m.group())]
        if not spans:
            continue
        match = chance.choice(spans)
        found = re.search(
            rf"(?<!\w){re.escape(match.group())}(?!\w)" if not chinese else re.escape(match.group()), context
        )
        if found is None:
            continue
        word = wh_word(match.group(), chance, chinese=chinese)
        blank = sentence[: match.start()] + word + sentence[match.end() :]
        question = blank.rstrip(".。!！") + ("？" if chinese else "?")
        return Question(
            identifier="",
            document=document,
            question=question[0].upper() + question[1:],
            context=context,
            answers=(Answer(start=found.start(), text=match.group()),),
        )
    return None


def wh_word(answer: str, chance: random.Random, *, chinese: bool) -> str:
    """What the question says in the place of the answer."""
    if chinese:
        return "哪一年" if YEAR.fullmatch(answer) else "多少" if answer[0].isdigit() else "什麼"
    if YEAR.fullmatch(answer):
        return chance.choice(("what year", "when"))
    if answer[0].isdigit():
        return chance.choice(("how many", "what number", "how much"))
    return chance.choice(("what", "who", "which", "what"))


def central_sentence(sentences: list[str]) -> int:
    """The sentence that shares most words with the others, per word of its own (ROUGE-1 F1 with the rest)."""
    bags = [Counter(w for w in WORD.findall(s.lower()) if w not in STOP_WORDS) for s in sentences]
    total = sum(bags, Counter())

    def score(bag: Counter[str]) -> float:
        rest = total - bag
        shared = sum((bag & rest).values())
        return 2 * shared / max(1, bag.total() + rest.total())

    return max(range(len(bags)), key=lambda index: score(bags[index]))


def lead_pair(sentences: list[str], chance: random.Random, *, document: str, chinese: bool, first: bool) -> Pair | None:
    """A passage and its lead: the article's first sentence where `first`, the central one otherwise.

    The lead leaves the source half of the time, so that a summary is neither only copied nor only guessed.
    """
    if len(sentences) < 4:
        return None
    index = 0 if first or chinese else central_sentence(sentences)
    target = sentences[index]
    if not (40 <= len(target) * (3 if chinese else 1) <= 320):
        return None
    kept = sentences if chance.random() < 0.5 else sentences[:index] + sentences[index + 1 :]
    return Pair(document=document, source=("" if chinese else " ").join(kept), targets=(target,))
