"""Corpora of generated text in the formats of the real ones, small enough to prepare in a second.

Sentences are random words, so that two texts share 13 words in a row only where a test planted a copy.
"""

from __future__ import annotations

import bz2
import json
import random
from pathlib import Path
from typing import Any

from training.data.splits import held_out_articles, is_held_out

MIXTURE = """[mixture]
begin = 5
end = 15
qa_early = {{ cloze = 1.0 }}
qa_late = {{ squad = 0.5, squad_subset = 0.2, xquad_zh = 0.2, cloze = 0.1 }}
summary_early = {{ lead = 0.7, dialogsum = 0.3 }}
summary_late = {{ dialogsum = 1.0 }}
instruction = {{ alpaca = 1.0 }}
"""
"""Of a recipe that `str.format` completes: what is learnt when."""

_WORDS = """
    river bridge winter market signal copper engine garden harbour letter mountain village teacher island painter
    glass window forest stone silver summer traffic mirror basket candle thunder orchard meadow lantern quarry
    saddle timber velvet whistle anchor barrel canyon dragon ember falcon granite hammer indigo jungle kettle
    crossed carried followed opened watched painted counted measured reached guarded mended lifted traded planted
"""
WORDS = _WORDS.split()
_NAMES = """
    Alder Birch Cedar Dorset Elmira Fenwick Garrow Halden Ilford Jarrow Kelso Lindow Marlow Norton
"""
NAMES = _NAMES.split()
CHARACTERS = "山水火土木金石田日月星雲雨雪風花草樹鳥魚馬牛羊人口手足心目耳門車船城市村路橋河海島國王書文字言語歌詩畫"

SQUAD_TITLES = [f"Squad_{number}" for number in range(12)]
HELD_OUT_SQUAD = sorted(held_out_articles(SQUAD_TITLES))
OPEN_TITLE = next(f"Wiki {number}" for number in range(1_000) if not is_held_out(f"Wiki {number}"))
HELD_OUT_TITLES = [f"Wiki {number}" for number in range(1_000) if is_held_out(f"Wiki {number}")][:2]
HELD_OUT_TITLES_ZH = [f"條目{number}" for number in range(1_000) if is_held_out(f"條目{number}")][:2]
HELD_OUT_INSTRUCTION = next(f"Task {n}" for n in range(1_000) if is_held_out(f"Task {n}"))


def sentence(chance: random.Random) -> str:
    """A sentence of random words with a name and a year that a neighbour may share."""
    words = chance.choices(WORDS, k=chance.randint(7, 12))
    words.insert(chance.randint(1, 5), chance.choice(NAMES))
    year = chance.choice((1871, 1903, 1950))
    return f"{words[0].capitalize()} {' '.join(words[1:])} in {year}."


def paragraph(chance: random.Random, sentences: int = 6) -> str:
    """Several sentences."""
    return " ".join(sentence(chance) for _ in range(sentences))


def chinese(chance: random.Random, sentences: int = 14) -> str:
    """Chinese sentences of random characters with years and titles of books."""
    made = []
    for _ in range(sentences):
        first, second = ("".join(chance.choices(CHARACTERS, k=chance.randint(6, 9))) for _ in range(2))
        made.append(f"{first}{chance.choice(('1911年', '《山海經》', '1950年'))}{second}。")
    return "".join(made)


def article(title: str, chance: random.Random) -> dict[str, Any]:
    """An article in SQuAD's format: two paragraphs with three questions each."""
    paragraphs = []
    for number in range(2):
        context = paragraph(chance)
        questions = []
        for place in range(3):
            word = chance.choice([word for word in context.split() if len(word) > 4 and "." not in word])
            answers = [{"answer_start": context.index(word), "text": word}] * 2
            question = "what " + " ".join(chance.choices(WORDS, k=6)) + "?"
            questions.append({"id": f"{title}/{number}/{place}", "question": question, "answers": answers})
        paragraphs.append({"context": context, "qas": questions})
    return {"title": title, "paragraphs": paragraphs}


def squad(articles: list[dict[str, Any]]) -> dict[str, Any]:
    """A file's content in SQuAD's format."""
    return {"version": "1.1", "data": articles}


def write_json(path: Path, content: Any) -> None:
    """A bz2 JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bz2.compress(json.dumps(content, ensure_ascii=False).encode()))


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """A bz2 JSON-lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_bytes(bz2.compress(lines.encode()))


def held_out_paragraph(root: Path) -> str:
    """A paragraph of a held-out SQuAD article of these corpora."""
    content = json.loads(bz2.decompress((root / "squad_v1.1/squad_v1.1_dev_12articles.json.bz2").read_bytes()))
    return next(each["paragraphs"][0]["context"] for each in content["data"] if each["title"] == HELD_OUT_SQUAD[0])


def write_corpora(root: Path) -> None:
    """All corpora, with copies of a held-out paragraph planted in the text, in questions and in instructions."""
    chance = random.Random(7)
    articles = [article(title, chance) for title in SQUAD_TITLES]
    write_json(root / "squad_v1.1/squad_v1.1_dev_12articles.json.bz2", squad(articles))
    copied = held_out_paragraph(root)
    write_text(root, copied, chance)
    write_questions(root, copied, articles, chance)
    write_tasks(root, copied, chance)


def write_text(root: Path, copied: str, chance: random.Random) -> None:
    """Wikipedia in two languages, and books."""
    titles = [f"Wiki {number}" for number in range(20)] + HELD_OUT_TITLES
    pages = [{"title": title, "text": "\n".join(paragraph(chance) for _ in range(4))} for title in titles]
    copy = {"title": OPEN_TITLE + " copied", "text": f"{paragraph(chance)}\n{copied}"}
    write_lines(root / "wikipedia_en/wiki_en_00.jsonl.bz2", [*pages, copy])
    titles = [f"條目{number}" for number in range(8)] + HELD_OUT_TITLES_ZH
    write_lines(
        root / "wikipedia_zh/wiki_zh_00.jsonl.bz2",
        [{"title": title, "text": "\n".join(chinese(chance) for _ in range(2))} for title in titles],
    )
    books = [{"title": f"Book {number}", "text": paragraph(chance, 20)} for number in range(3)]
    copy = {"title": "Book copied", "text": paragraph(chance) + " " + copied}
    write_lines(root / "books_en/books_en_00.jsonl.bz2", [*books, copy])


def write_questions(root: Path, copied: str, articles: list[dict[str, Any]], chance: random.Random) -> None:
    """A part of SQuAD without titles, one of whose paragraphs is held out, and a translation of some articles."""
    parts = [paragraph(chance) for _ in range(12)] + [copied]
    paragraphs = [
        {
            "context": part,
            "qas": [
                {
                    "id": f"part/{number}",
                    "question": "what came first?",
                    "answers": [{"answer_start": 0, "text": part.split()[0]}],
                }
            ],
        }
        for number, part in enumerate(parts)
    ]
    write_json(root / "squad_v1.1/squad_subset_part.json.bz2", squad([{"title": "part", "paragraphs": paragraphs}]))
    translated = [
        {
            "title": each["title"],
            "paragraphs": [
                {
                    "context": (text := chinese(chance, 3)),
                    "qas": [
                        {"id": qa["id"], "question": "什麼？", "answers": [{"answer_start": 0, "text": text[:2]}]}
                        for qa in part["qas"]
                    ],
                }
                for part in each["paragraphs"]
            ],
        }
        for each in articles
    ]
    write_json(root / "xquad_zh/xquad_zh_12articles.json.bz2", squad(translated))


def write_tasks(root: Path, copied: str, chance: random.Random) -> None:
    """Summaries with a development part, and instructions in two languages."""
    for part, count in (("train", 16), ("dev", 3)):
        dialogues = [
            {
                "fname": f"{part}_{number}",
                "dialogue": f"#Person1#: {paragraph(chance, 2)}\n#Person2#: {paragraph(chance, 2)}",
                "summary" if part == "train" else "summary1": sentence(chance),
                **({} if part == "train" else {"summary2": sentence(chance)}),
            }
            for number in range(count)
        ]
        write_lines(root / f"dialogsum/dialogsum_{part}.jsonl.bz2", dialogues)
    names = [f"Task {number}" for number in range(16)] + [HELD_OUT_INSTRUCTION]
    tasks = [instruction(name, sentence(chance), chinese(chance, 1)) for name in names]
    tasks.append(instruction("Repeat what follows", copied, chinese(chance, 1)))
    write_lines(root / "alpaca_en_zh/alpaca_en_zh_00.jsonl.bz2", tasks)


def instruction(name: str, output: str, output_zh: str, score: float | None = 5) -> dict[str, Any]:
    """One instruction in Alpaca's format, in both languages."""
    return {
        "instruction": name,
        "input": "",
        "output": output,
        "zh_instruction": f"任務：{name}",
        "zh_input": "輸入",
        "zh_output": output_zh,
        "zh_score": score,
    }
