"""`trident data prepare`: from the corpora's files to shards and development files.

Every file is one unit of work, so files can be prepared in any order, in parallel, or as they arrive: a file whose
shards were made from the same bytes with the same settings is skipped.

    output/train/{text,qa,summary,instruction}/NAME/   shards (see shards.py)
    output/dev/squad.json                              the held-out SQuAD articles, in SQuAD's format
    output/dev/wikipedia_{en,zh}.FILE.jsonl            held-out articles {title, text}
    output/dev/{dialogsum,scitldr}.jsonl               pairs {source, targets}
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import chain
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer

from model.tokenizer import load_tokenizer
from training.claim import claimed
from training.data.catalogue import TOKENIZER_SAMPLE, SourceFile, Use, find_files
from training.data.development import keep_squad_articles, write_documents, write_pairs
from training.data.mining import (
    PASSAGE_CHARACTERS,
    PASSAGE_CHARACTERS_ZH,
    cloze_question,
    lead_pair,
    passages,
)
from training.data.prepare_settings import PrepareSettings, with_held_out_squad
from training.data.readers import (
    Document,
    Pair,
    Question,
    read_documents,
    read_pairs,
    read_questions,
)
from training.data.shards import (
    INSTRUCTION,
    MOST_TOKENS,
    PAIR_ROW,
    QA,
    QA_ROW,
    SUMMARY,
    TEXT,
    ShardInfo,
    read_all_info,
    read_info,
    write_shard,
)
from training.data.splits import OverlapFilter, digest, is_held_out
from training.data.tokenise import ShardBuilder, encode_documents, encode_pairs, encode_questions
from training.digests import file_digest, tokenizer_digest

PR_SET_PDEATHSIG = 1
"""Of Linux' prctl: the signal that a process gets when its parent ends."""
CLOZE_CHANCE, LEAD_CHANCE = 0.8, 0.25
"""Part of Wikipedia's passages that become a cloze question, or a pair of passage and central sentence."""
NEGATIVE_CHANCE = 0.05
"""Part of SQuAD's questions asked once more of another paragraph of the same article, which has no answer."""
NEGATIVES_FROM = ("squad", "cmrc2018", "drcd")


def prepare(root: Path, output: Path, tokenizer: Path, *, workers: int, qa_window: int = 384) -> list[ShardInfo]:
    """Make the shards of every corpus file under `root`, and what is known of all shards in `output`.

    SQuAD must be under `root`, or prepared before: its held-out articles decide what else is left out.
    Raises ValueError where it is neither, for a tokenizer of more tokens than shards can number, or where another
    process prepares into `output`.
    """
    vocabulary = load_tokenizer(tokenizer).get_vocab_size()
    if vocabulary > MOST_TOKENS:
        raise ValueError(
            f"{tokenizer} has {vocabulary:,} tokens, and shards number {MOST_TOKENS:,}: train a smaller one"
        )
    files = find_files(root)
    with claimed(output, "preparing data", "--output"):
        _prepare_files(files, PrepareSettings(output=output, tokenizer=tokenizer, qa_window=qa_window), workers)
        return read_all_info(output)


def _prepare_files(files: list[SourceFile], given: PrepareSettings, workers: int) -> None:
    """One after the other, or several at once."""
    keep_squad_articles(files, given.output)
    settings = with_held_out_squad(given)
    console = Console(stderr=True)
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if workers > 1 else "true"
    if workers == 1:
        for file in track(files, "Preparing", console=console):
            prepare_file(file, settings)
    else:
        with ProcessPoolExecutor(workers, initializer=_end_with_parent) as pool:
            waiting = [pool.submit(prepare_file, file, settings) for file in files]
            for done in track(as_completed(waiting), "Preparing", total=len(files), console=console):
                done.result()


def _end_with_parent() -> None:
    """For a pool's processes, which would wait for ever for a parent that a signal took, and write in the meantime."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def prepare_file(file: SourceFile, settings: PrepareSettings) -> None:
    """Make the shards, or the development file, of one corpus file."""
    sha256 = file_digest(file.path)
    if all(_is_done(folder, sha256, settings) for folder in _shards_of(file, settings)):
        return
    tokenizer = load_tokenizer(settings.tokenizer)
    if file.is_development:
        write_pairs(settings.output / "dev" / f"{file.source.name}.jsonl", read_pairs(file.path, file.source.name))
    elif file.source.use is Use.TEXT:
        prepare_text(file, settings, tokenizer, sha256)
    elif file.source.use is Use.QA:
        prepare_questions(file, settings, tokenizer, sha256)
    else:
        prepare_pairs(file, settings, tokenizer, sha256)


def _shards_of(file: SourceFile, settings: PrepareSettings) -> list[Path]:
    """Folders of the shards that a corpus file becomes."""
    train = settings.output / "train"
    folders = [train / file.source.use / file.name]
    if file.source.mines_tasks:
        folders += [train / QA / f"cloze_{file.name}", train / SUMMARY / f"lead_{file.name}"]
    return folders


def _is_done(folder: Path, sha256: str, settings: PrepareSettings) -> bool:
    if not (folder / "shard.json").is_file():
        return False
    info = read_info(folder)
    says_tokenizer = bool(info.tokenizer)  # shards made before that was written are made anew
    return says_tokenizer and (info.sha256, info.settings) == (sha256, settings.digest)


def prepare_text(file: SourceFile, settings: PrepareSettings, tokenizer: Tokenizer, sha256: str) -> None:
    """Documents as they are, and for Wikipedia the questions and summaries mined from them."""
    every = list(read_documents(file.path))
    splits = file.source.mines_tasks or file.source.is_derived
    kept_out = [d for d in every if splits and is_held_out(d.document)]
    split = [d for d in every if not (splits and is_held_out(d.document))]
    overlap = OverlapFilter(settings.held_out_texts)
    documents = [d for d in split if not overlap.overlaps(d.text)]
    counts = {"documents": len(documents), "dropped": len(split) - len(documents)}
    if file.source.mines_tasks:
        write_documents(settings.output / "dev" / f"{file.source.name}.{file.name}.jsonl", kept_out)
        questions, leads = mine(documents, chinese=file.source.name.endswith("_zh"))
        qa = ShardBuilder(QA_ROW)
        encode_questions(tokenizer, questions, qa, settings.qa_window)
        save(qa, file, settings, tokenizer, QA, "cloze_" + file.name, sha256, **counts)
        pairs = ShardBuilder(PAIR_ROW)
        encode_pairs(tokenizer, leads, pairs)
        save(pairs, file, settings, tokenizer, SUMMARY, "lead_" + file.name, sha256, **counts)
    tokens = list(encode_documents(tokenizer, (document.text for document in documents)))
    builder = ShardBuilder(PAIR_ROW, tokens=tokens, size=sum(map(len, tokens)))
    save(builder, file, settings, tokenizer, TEXT, file.name, sha256, **counts)


def mine(documents: Iterable[Document], *, chinese: bool) -> tuple[list[Question], list[Pair]]:
    """Cloze questions and leads; the same documents give the same ones."""
    questions: list[Question] = []
    leads: list[Pair] = []
    for document in documents:
        chance = random.Random(digest(document.document))
        limits = PASSAGE_CHARACTERS_ZH if chinese else PASSAGE_CHARACTERS
        for number, sentences in enumerate(passages(document.text, limits)):
            if chance.random() < CLOZE_CHANCE:
                question = cloze_question(sentences, chance, document=document.document, chinese=chinese)
                questions += [question] if question else []
            if number == 0 or chance.random() < LEAD_CHANCE:
                pair = lead_pair(sentences, chance, document=document.document, chinese=chinese, first=number == 0)
                leads += [pair] if pair else []
    return questions, leads


def prepare_questions(file: SourceFile, settings: PrepareSettings, tokenizer: Tokenizer, sha256: str) -> None:
    """Questions outside the held-out documents, by context, some asked of a wrong paragraph too."""
    overlap = OverlapFilter(settings.held_out_texts)
    clean: dict[str, bool] = {}
    kept: list[Question] = []
    for question in read_questions(file.path):
        if file.source.name == "squad":
            held_out = question.document in settings.held_out
        else:
            held_out = question.identifier in settings.held_out_questions or is_held_out(question.document)
        if held_out or not question.answers:
            continue
        if question.context not in clean:
            clean[question.context] = not overlap.overlaps(question.context)
        if clean[question.context]:
            kept.append(question)
    if file.source.name in NEGATIVES_FROM:
        kept += list(with_wrong_context(kept))
    builder = ShardBuilder(QA_ROW)
    encode_questions(tokenizer, kept, builder, settings.qa_window)
    documents, dropped = len({question.document for question in kept}), list(clean.values()).count(False)
    save(builder, file, settings, tokenizer, QA, file.name, sha256, documents=documents, dropped=dropped)


def with_wrong_context(questions: list[Question]) -> Iterator[Question]:
    """A few questions beside another paragraph of their document that does not contain the answer's text."""
    by_document: dict[str, list[str]] = {}
    for question in questions:
        contexts = by_document.setdefault(question.document, [])
        if question.context not in contexts:
            contexts.append(question.context)
    for question in questions:
        chance = random.Random(digest(question.identifier))
        if chance.random() >= NEGATIVE_CHANCE:
            continue
        context = chance.choice(by_document[question.document])
        if not any(answer.text in context for answer in question.answers):
            yield Question(
                identifier=question.identifier,
                document=question.document,
                question=question.question,
                context=context,
                answers=(),
            )


def prepare_pairs(file: SourceFile, settings: PrepareSettings, tokenizer: Tokenizer, sha256: str) -> None:
    """Summaries and instructions outside the held-out documents."""
    overlap = OverlapFilter(settings.held_out_texts)
    pairs = list(read_pairs(file.path, file.source.name))
    split = [pair for pair in pairs if file.source.has_development_part or not is_held_out(pair.document)]
    kept = [pair for pair in split if not any(overlap.overlaps(text) for text in (pair.source, *pair.targets))]
    builder = ShardBuilder(PAIR_ROW)
    encode_pairs(tokenizer, kept, builder)
    kind = SUMMARY if file.source.use is Use.SUMMARY else INSTRUCTION
    counts = {"documents": len(kept), "dropped": len(split) - len(kept)}
    save(builder, file, settings, tokenizer, kind, file.name, sha256, **counts)


def save(
    builder: ShardBuilder,
    file: SourceFile,
    settings: PrepareSettings,
    tokenizer: Tokenizer,
    kind: str,
    name: str,
    sha256: str,
    *,
    documents: int,
    dropped: int,
) -> None:
    """Write what a builder holds."""
    rows = builder.as_rows() if builder.rows else np.zeros(0, builder.dtype)
    info = ShardInfo(
        name=name,
        source=file.source.name,
        licence=file.source.licence,
        file=file.path.name,
        sha256=sha256,
        tokenizer=tokenizer_digest(settings.tokenizer),
        vocabulary=tokenizer.get_vocab_size(),
        settings=settings.digest,
        tokens=builder.size,
        rows=len(rows),
        documents=documents,
        dropped=dropped,
    )
    write_shard(settings.output / "train" / kind / name, info, builder.tokens, rows)


def tokenizer_texts(root: Path) -> Iterator[str]:
    """The sample of the corpora that the tokenizer learns from."""
    for file in sorted(find_files(root), key=lambda file: str(file.path)):
        every, characters = TOKENIZER_SAMPLE.get(file.source.name, (0, 0))
        if not every or file.is_development:
            continue
        if file.source.use is Use.TEXT:
            texts: Iterable[str] = (document.text for document in read_documents(file.path))
        else:
            pairs = read_pairs(file.path, file.source.name)
            texts = chain.from_iterable((pair.source, *pair.targets) for pair in pairs)
        yield from (text[:characters] for number, text in enumerate(texts) if number % every == 0)
