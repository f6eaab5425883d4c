"""Stage 2, `trident data augment`: texts translated into other languages and back, and what they add kept.

    originals    one task a file: the originals are signed, as stage 1 does
    translate    one task a file and pivot: forth and back; goes on after the last document that was done
    exact, near  signatures of originals and translations together, originals first
    write        one task a file and pivot: what repeats an original, or another translation, is left out
    finish       labelled corpora handed on, work files removed

The result holds the originals as they were, and the back-translations in `augmented/`, under their originals' titles,
so that whoever holds a document out of training holds its translations out too.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from training.data.catalogue import find_source
from training.data.pipeline import duplicates
from training.data.pipeline.documents import (
    Clean,
    Corpora,
    HandOn,
    ReadDocuments,
    ReadKept,
    WriteCorpus,
    find_corpora,
    kept_file,
    write_count,
)
from training.data.pipeline.drops import DropLog
from training.data.pipeline.execution import FINISH, RunFolder, Stage, run_stages
from training.data.pipeline.language import language_of
from training.data.pipeline.report import RunReport, read_report
from training.data.pipeline.settings import AugmentSettings, DataSettings, FilterSettings, Pivot, digest_of
from training.data.pipeline.translation import Translator
from training.data.pipeline.words import split_words
from training.data.readers import read_records

DOCUMENTS_AT_ONCE = 8
"""Documents translated, and noted as done, at once."""


def augment_corpora(root: Path, output: Path, settings: DataSettings) -> RunReport | None:
    """Write the texts under `root` and their back-translations to `output/corpora`; None where Slurm will do it.

    Raises ValueError where no pivots are set, a model does not load, files are damaged, or the output holds something
    else.
    """
    if not settings.augment.routes:
        raise ValueError("no pivot languages: add [augment.pivots.fr] with forward and backward to the settings")
    corpora, folder = find_corpora(root.absolute()), RunFolder(root=output.absolute())
    tasks = len(corpora.texts) * (1 + len(settings.augment.routes))
    if tasks > duplicates.MOST_FILES:
        raise ValueError(f"{tasks} files and translations; at most {duplicates.MOST_FILES} can be compared")
    folder.claim("augment", digest_of(settings.augment, settings.filter, corpora.identity))
    done = run_stages(augment_stages(corpora, folder, settings.augment, settings.filter), folder, settings.executor)
    return read_report(output) if done else None


def augment_stages(
    corpora: Corpora, folder: RunFolder, settings: AugmentSettings, likeness: FilterSettings
) -> list[Stage]:
    """The stages from files to files. Ranks of signatures: the originals, then the translations of each pivot."""
    files, work, routes = len(corpora.texts), folder.work, settings.routes
    translations, kept = files * len(routes), work / "kept"
    config = duplicates.minhash(likeness.shingle_words, likeness.buckets, likeness.hashes)
    originals = [corpora.output_name(path) for path in corpora.texts]
    augmented = Path(find_source("augmented").pattern).parent
    names = [augmented / f"{route.language}_{'_'.join(name.parts)}" for route in routes for name in originals]
    return [
        Stage(
            name="1-originals",
            tasks=files,
            steps=[
                ReadDocuments(
                    corpora.texts, corpora.root, counts=folder.counts, progress=folder.progress("1-originals")
                ),
                WriteCorpus(folder.corpora, originals, counts=folder.counts),
                *duplicates.signatures(work, config),
            ],
        ),
        Stage(
            name="2-translate",
            tasks=translations,
            steps=[
                Translate(corpora, routes, settings, kept, folder),
                Shifted(files, duplicates.signatures(work, config)),
            ],
        ),
        Stage(name="3-exact", tasks=1, steps=[duplicates.find_exact(work)]),
        Stage(name="4-near", tasks=likeness.buckets, steps=[duplicates.find_near(work, config)]),
        Stage(name="5-groups", tasks=1, steps=[duplicates.group_near(work)]),
        Stage(
            name="6-write",
            tasks=translations,
            steps=[
                ReadKept(kept),
                Shifted(files, [duplicates.drop_duplicates(work, DropLog(folder.dropped / "2-duplicates"))]),
                WriteCorpus(folder.corpora, names, counts=folder.root / "counts" / "augmented"),
            ],
        ),
        Stage(name=FINISH, tasks=1, steps=[HandOn(corpora, folder.corpora), Clean(work)]),
    ]


class Shifted(PipelineStep):
    """Steps that see other ranks than the stage's, so that translations stand behind all originals."""

    type, name = "DEDUP", "shifted"

    def __init__(self, by: int, steps: list[PipelineStep]) -> None:
        super().__init__()
        self.by, self.steps = by, steps

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Run the steps one after the other, each on what the one before hands on."""
        for step in self.steps:
            data = step.run(data, rank + self.by, world_size + self.by)
        return data


class Translate(PipelineStep):
    """Translates a file's documents forth and back; degenerate translations are logged and left out."""

    type, name = "AUGMENT", "translate"

    def __init__(
        self, corpora: Corpora, routes: list[Pivot], settings: AugmentSettings, kept: Path, folder: RunFolder
    ) -> None:
        super().__init__()
        self.corpora, self.routes, self.settings, self.kept, self.folder = corpora, routes, settings, kept, folder

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Hand on every usable translation, as `ReadKept` will read it again."""
        pivot, file = divmod(rank, len(self.corpora.texts))
        route, path = self.routes[pivot], self.corpora.texts[file]
        self.translate_rest(route, path, rank)
        with DropLog(self.folder.dropped / "1-translation") as log, self._made(rank).open(encoding="utf-8") as made:
            log.open(rank)
            self.kept.mkdir(parents=True, exist_ok=True)
            with gzip.open(kept_file(self.kept, rank), "wt", compresslevel=1, encoding="utf-8") as usable:
                number = -1
                for number, (record, line) in enumerate(zip(read_records(path, "text"), made, strict=True)):
                    place = {"file": str(path.relative_to(self.corpora.root)), "number": number}
                    title = record.get("title", f"{place['file']}/{number}")
                    text = json.loads(line)
                    new = {"title": title, "text": text or "", "pivot": route.language}
                    document = Document(
                        text=new["text"],
                        id=f"{rank + len(self.corpora.texts)}/{number}",
                        metadata={"record": new, **place},
                    )
                    if reason := self.fault(record["text"], text):
                        document.metadata["filter_reason"] = reason
                        log.write(document, rank)
                        continue
                    usable.write(json.dumps({"record": new, **place}, ensure_ascii=False) + "\n")
                    yield document
        write_count(self.folder.root / "counts" / "augmented", "read", rank, number + 1)

    def fault(self, original: str, made: str | None) -> str | None:
        """What is wrong with a translation, or None; the translation is None for another language's document."""
        if made is None:
            return "other_language"
        before, after = len(split_words(original)), len(split_words(made))
        if not self.settings.least_kept <= after / max(1, before) <= 1 / self.settings.least_kept:
            return "length_differs"
        words = split_words(made)
        if len(set(words)) < len(words) / 10:
            return "repeats_itself"
        return None

    def translate_rest(self, route: Pivot, path: Path, rank: int) -> None:
        """Translate the documents that an earlier run has not; each batch is written before the next."""
        made = self._made(rank)
        made.parent.mkdir(parents=True, exist_ok=True)
        done = keep_whole_lines(made)
        waiting = (record["text"] for record in islice(read_records(path, "text"), done, None))
        translators: list[Translator] = []
        while texts := list(islice(waiting, DOCUMENTS_AT_ONCE)):
            translators = translators or [self.translator(route.forward), self.translator(route.backward)]
            right = [n for n, text in enumerate(texts) if language_of(text) == self.settings.language]
            made_of = [texts[n] for n in right]
            for translator in translators:
                made_of = translator.translate(made_of)
            found = dict(zip(right, made_of, strict=True))
            with made.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(found.get(n), ensure_ascii=False) + "\n" for n in range(len(texts)))

    def translator(self, model: str) -> Translator:
        """A model with the settings' limits."""
        return Translator(
            model,
            batch_sentences=self.settings.batch_sentences,
            max_tokens=self.settings.max_tokens,
            num_beams=self.settings.num_beams,
            device=self.settings.device,
        )

    def _made(self, rank: int) -> Path:
        return self.folder.work / "translated" / f"{rank:05d}.jsonl"


def keep_whole_lines(path: Path) -> int:
    """Cut off a line that a kill left unfinished; returns how many are left."""
    path.touch()
    lines = 0
    with path.open("r+b") as file:
        whole = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            whole, lines = whole + len(line), lines + 1
        file.truncate(whole)
    return lines
