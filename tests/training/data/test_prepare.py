"""`prepare`: what is held out is in no shard, the same shards however many workers, and no file done twice."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tokenizers import Tokenizer

from model.tokenizer import EOS, decode, save_tokenizer, train_tokenizer
from tests.forks import Forks, command
from tests.training.conftest import WINDOW
from tests.training.tiny_corpora import (
    HELD_OUT_INSTRUCTION,
    HELD_OUT_SQUAD,
    HELD_OUT_TITLES,
    HELD_OUT_TITLES_ZH,
    OPEN_TITLE,
    held_out_paragraph,
    write_lines,
)
from training.claim import claimed
from training.data.catalogue import find_files
from training.data.prepare import prepare, prepare_file
from training.data.prepare_settings import PrepareSettings, with_held_out_squad
from training.data.readers import read_questions, read_records
from training.data.shards import Shard, read_all_info, read_shard, read_shards
from training.data.splits import OverlapFilter
from training.digests import file_digest

PLANTED_FROM = {"wiki_en_00", "books_en_00", "squad_subset_part", "alpaca_en_zh_00"}
"""Files of the tiny corpora that hold a copy of a held-out paragraph."""


def all_shards(output: Path) -> list[Shard]:
    return [read_shard(path.parent) for path in sorted((output / "train").glob("*/*/shard.json"))]


def texts_of(shard: Shard, tokenizer: Tokenizer) -> Iterator[str]:
    """What a shard's tokens say, one text a row, or a document."""
    if not len(shard.rows):
        ends = [place + 1 for place in (shard.tokens == EOS).nonzero()[0]]
        for begin, end in zip([0, *ends], ends, strict=False):
            yield decode(tokenizer, shard.tokens[begin:end].tolist())
    for row in shard.rows:
        length = row["length"] if "length" in row.dtype.names else row["source_length"] + row["target_length"]
        yield decode(tokenizer, shard.tokens[row["offset"] : row["offset"] + length].tolist())


def development_texts(output: Path) -> list[str]:
    """Every text of the development files."""
    texts = [question.context for question in read_questions(output / "dev/squad.json")]
    for path in sorted((output / "dev").glob("*.jsonl")):
        for record in read_records(path):
            texts += [record["text"]] if "text" in record else [record["source"], *record["targets"]]
    return texts


def test_no_shard_shares_thirteen_words_with_a_development_file(prepared: Path, tokenizer: Tokenizer) -> None:
    held_out = OverlapFilter(development_texts(prepared))
    assert len(held_out.ngrams) > 1_000
    shards = all_shards(prepared)
    assert {"wiki_en_00", "cloze_wiki_en_00", "lead_wiki_en_00", "dialogsum_train"} <= {s.info.name for s in shards}
    copies = [(s.info.name, text) for s in shards for text in texts_of(s, tokenizer) if held_out.overlaps(text)]
    assert copies == []


def test_that_check_finds_what_is_planted(
    corpora: Path, trained_tokenizer: Path, tokenizer: Tokenizer, prepared: Path, tmp_path: Path
) -> None:
    """Without the overlap filter and the splits, the same corpora do share words with the development files."""
    held_out = OverlapFilter(development_texts(prepared))
    open_settings = PrepareSettings(output=tmp_path, tokenizer=trained_tokenizer, qa_window=WINDOW)
    for file in find_files(corpora):
        prepare_file(file, open_settings)
    found = {s.info.name for s in all_shards(tmp_path) if any(map(held_out.overlaps, texts_of(s, tokenizer)))}
    assert found >= {*PLANTED_FROM, "squad_v1.1_dev_12articles"}


def test_dropped_copies_are_counted(prepared: Path) -> None:
    dropped = {info.name: info.dropped for info in read_all_info(prepared)}
    assert {name for name, count in dropped.items() if count} == PLANTED_FROM | {"cloze_wiki_en_00", "lead_wiki_en_00"}
    assert set(dropped.values()) == {0, 1}


def test_held_out_documents_are_the_development_files(prepared: Path) -> None:
    squad = json.loads((prepared / "dev/squad.json").read_text(encoding="utf-8"))
    assert sorted(article["title"] for article in squad["data"]) == HELD_OUT_SQUAD
    assert all(qa["answers"] for article in squad["data"] for part in article["paragraphs"] for qa in part["qas"])
    for name, titles in (("wikipedia_en.wiki_en_00", HELD_OUT_TITLES), ("wikipedia_zh.wiki_zh_00", HELD_OUT_TITLES_ZH)):
        assert [record["title"] for record in read_records(prepared / f"dev/{name}.jsonl")] == titles
    assert [len(record["targets"]) for record in read_records(prepared / "dev/dialogsum.jsonl")] == [2, 2, 2]


def test_the_publishers_development_part_is_no_shard(prepared: Path) -> None:
    assert [path.name for path in (prepared / "train/summary").glob("dialogsum*")] == ["dialogsum_train"]


def test_both_languages_of_a_held_out_instruction_are_left_out(prepared: Path, tokenizer: Tokenizer) -> None:
    (shard,) = read_shards(prepared, "instruction")
    texts = list(texts_of(shard, tokenizer))
    assert sum(HELD_OUT_INSTRUCTION in text for text in texts) == 0
    assert sum("Task 0" in text for text in texts) == sum("任務：Task 0" in text for text in texts) * 2 == 2


def test_translations_of_held_out_questions_are_left_out(prepared: Path, corpora: Path, tokenizer: Tokenizer) -> None:
    (shard,) = [shard for shard in read_shards(prepared, "qa") if shard.info.source == "xquad_zh"]
    kept = {text.partition("？")[2] for text in texts_of(shard, tokenizer)}
    questions = list(read_questions(corpora / "xquad_zh/xquad_zh_12articles.json.bz2"))
    left_out = {question.context for question in questions if question.document in HELD_OUT_SQUAD}
    assert kept == {question.context for question in questions} - left_out
    assert left_out


def test_shards_say_what_they_were_made_from(prepared: Path, corpora: Path) -> None:
    import hashlib

    (info,) = [info for info in read_all_info(prepared) if info.name == "cloze_wiki_zh_00"]
    file = corpora / "wikipedia_zh/wiki_zh_00.jsonl.bz2"
    assert (info.source, info.licence, info.file) == ("wikipedia_zh", "CC BY-SA 3.0", file.name)
    assert info.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert info.rows > 0
    assert info.documents == 8


def test_answers_of_every_question_decode_right(prepared: Path, corpora: Path, tokenizer: Tokenizer) -> None:
    (shard,) = [shard for shard in read_shards(prepared, "qa") if shard.info.source == "squad"]
    answers = {
        answer.text
        for question in read_questions(corpora / "squad_v1.1/squad_v1.1_dev_12articles.json.bz2")
        for answer in question.answers
    }
    for row in shard.rows:
        assert row["length"] < WINDOW
        begin, end = row["offset"] + row["answer_begin"], row["offset"] + row["answer_end"]
        if row["answer_end"] > 0:
            assert decode(tokenizer, shard.tokens[begin:end].tolist()).strip() in answers


def test_a_file_of_the_same_bytes_is_skipped(
    corpora: Path, trained_tokenizer: Path, prepared: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(prepared, tmp_path / "data"))
    roots = shutil.copytree(corpora, tmp_path / "corpora")
    before = {path: path.stat().st_ino for path in output.glob("train/*/*/tokens.npy")}
    prepare(roots, output, trained_tokenizer, workers=1, qa_window=WINDOW)
    assert {path: path.stat().st_ino for path in before} == before
    books = roots / "books_en/books_en_00.jsonl.bz2"
    books.write_bytes((roots / "wikipedia_en/wiki_en_00.jsonl.bz2").read_bytes())
    prepare(roots, output, trained_tokenizer, workers=1, qa_window=WINDOW)
    changed = {path.parent.name for path in before if path.stat().st_ino != before[path]}
    assert changed == {"books_en_00"}


@pytest.mark.parametrize("lost", ["qa/cloze_wiki_en_00", "summary/lead_wiki_en_00", "text/wiki_en_00"])
def test_a_shard_that_was_deleted_is_made_again(
    prepared: Path, corpora: Path, trained_tokenizer: Path, tmp_path: Path, lost: str
) -> None:
    output = Path(shutil.copytree(prepared, tmp_path / "data"))
    shutil.rmtree(output / "train" / lost)
    prepare(corpora, output, trained_tokenizer, workers=1, qa_window=WINDOW)
    for name in ("tokens.npy", "rows.npy", "shard.json"):
        assert (output / "train" / lost / name).read_bytes() == (prepared / "train" / lost / name).read_bytes()


def test_a_second_run_into_one_folder_is_refused(corpora: Path, trained_tokenizer: Path, tmp_path: Path) -> None:
    with (
        claimed(tmp_path / "data", "preparing data", "--output"),
        pytest.raises(ValueError, match=r"another process is preparing data into .*data: .* choose another --output"),
    ):
        prepare(corpora, tmp_path / "data", trained_tokenizer, workers=1, qa_window=WINDOW)


def test_a_signal_takes_the_processes_of_the_pool_too(corpora: Path, trained_tokenizer: Path, tmp_path: Path) -> None:
    arguments = ["data", "prepare", corpora, "--output", tmp_path / "data", "--tokenizer", trained_tokenizer]
    pool: list[psutil.Process] = []
    deadline_s = time.monotonic() + 60
    with Forks(command, *arguments, "--workers", 2, "--qa-window", WINDOW) as process:
        while not pool and process.poll() is None:
            assert time.monotonic() < deadline_s
            pool = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == -signal.SIGTERM
    assert psutil.wait_procs(pool, timeout=5)[1] == []


@pytest.mark.parametrize("change", ["window", "tokenizer"])
def test_another_window_or_tokenizer_makes_all_shards_anew(
    corpora: Path, trained_tokenizer: Path, prepared: Path, tmp_path: Path, change: str
) -> None:
    output = Path(shutil.copytree(prepared, tmp_path / "data"))
    before = {info.name: info.tokens for info in read_all_info(output)}
    if change == "tokenizer":
        save_tokenizer(train_tokenizer(["only a few merges"]), tmp_path / "other")
    used = trained_tokenizer if change == "window" else tmp_path / "other"
    prepare(corpora, output, used, workers=1, qa_window=64 if change == "window" else WINDOW)
    after = {info.name: info.tokens for info in read_all_info(output)}
    assert after["squad_v1.1_dev_12articles"] != before["squad_v1.1_dev_12articles"]
    settings = with_held_out_squad(
        PrepareSettings(output=output, tokenizer=used, qa_window=64 if change == "window" else WINDOW)
    )
    assert {info.settings for info in read_all_info(output)} == {settings.digest}


def test_corpora_that_arrive_later_need_no_squad_again(
    corpora: Path, trained_tokenizer: Path, prepared: Path, tmp_path: Path
) -> None:
    output, later = tmp_path / "data", tmp_path / "later"
    shutil.copytree(corpora / "books_en", later / "books_en")
    with pytest.raises(ValueError, match=r"squad\.json is missing: prepare a folder with squad_v1\.1"):
        prepare(later, output, trained_tokenizer, workers=1)
    shutil.copytree(prepared / "dev", output / "dev")
    (info,) = prepare(later, output, trained_tokenizer, workers=1)
    assert (info.name, info.dropped) == ("books_en_00", 1)


def test_a_folder_without_corpora_is_refused(tmp_path: Path, trained_tokenizer: Path) -> None:
    with pytest.raises(ValueError, match="holds none of the known corpora"):
        prepare(tmp_path, tmp_path / "out", trained_tokenizer, workers=1)


def test_the_planted_paragraph_is_one_of_the_held_out_ones(corpora: Path, prepared: Path) -> None:
    contexts = {question.context for question in read_questions(prepared / "dev/squad.json")}
    assert held_out_paragraph(corpora) in contexts


def test_a_back_translation_of_a_held_out_document_is_left_out(
    corpora: Path, trained_tokenizer: Path, prepared: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    output = Path(shutil.copytree(prepared, tmp_path / "data"))
    records = [{"title": title, "text": f"made of {title}"} for title in (OPEN_TITLE, *HELD_OUT_TITLES)]
    for folder in ("augmented", "own_text"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        write_lines(tmp_path / "in" / folder / f"{folder}_a.jsonl.bz2", records)
    prepare(tmp_path / "in", output, trained_tokenizer, workers=1, qa_window=WINDOW)
    texts = {shard.info.name: list(texts_of(shard, tokenizer)) for shard in read_shards(output, "text")}
    assert texts["augmented_a"] == [f"made of {OPEN_TITLE}"]
    assert texts["own_text_a"] == [record["text"] for record in records]
    assert not list((output / "dev").glob("augmented*"))


def test_a_tokenizer_of_more_tokens_than_shards_can_number_is_refused(
    corpora: Path, trained_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.data.prepare.MOST_TOKENS", 31_999)
    with pytest.raises(ValueError, match=r"has 32,000 tokens, and shards number 31,999: train a smaller one"):
        prepare(corpora, tmp_path / "data", trained_tokenizer, workers=1)
    assert not (tmp_path / "data").exists()


def test_every_shard_says_which_tokenizer_made_it(prepared: Path, trained_tokenizer: Path) -> None:
    digest = file_digest(trained_tokenizer / "tokenizer.json")
    assert {(info.tokenizer, info.vocabulary) for info in read_all_info(prepared)} == {(digest, 32_000)}
