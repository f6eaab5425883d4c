"""Stage 3, `trident data select`: the part of the corpora that is nearest to a domain's seeds.

    frequencies  one task a file: in how many documents each feature occurs
    direction    one task: idf, and what sets the seeds apart
    scores       one task a file: a number a document
    threshold    one task: the score that the wanted part reaches
    write        one task a file
    finish       labelled corpora handed on, work files removed

No task holds more than a batch of documents, one vector of features and one file's scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from training.data.pipeline.documents import Clean, Corpora, HandOn, ReadDocuments, WriteCorpus, find_corpora
from training.data.pipeline.domain import counts_of, direction_of, in_batches, inverse_frequencies, weighted
from training.data.pipeline.drops import DropLog
from training.data.pipeline.execution import Stage, run_stages
from training.data.pipeline.report import RunReport, read_report
from training.data.pipeline.run_folder import FINISH, RunFolder
from training.data.pipeline.settings import DataSettings, SelectSettings, digest_of
from training.data.readers import read_records
from training.digests import file_digest

BINS = 1 << 20
"""Scores lie in [-1, 1] and are told apart to 2e-6."""


def select_corpora(root: Path, seeds: Path, output: Path, top: float, settings: DataSettings) -> RunReport | None:
    """Write the `top` part of the documents under `root` to `output/corpora`; None where Slurm will do it.

    Raises ValueError for a part outside (0, 1], missing or damaged files, and an output that holds something else.
    """
    if not 0 < top <= 1:
        raise ValueError(f"top must be in (0, 1], got {top}")
    if not seeds.is_file():
        raise ValueError(f"there is no file of seeds {seeds}: JSON lines with 'text'")
    if not any(True for _ in read_records(seeds, "text")):
        raise ValueError(f"{seeds} holds no seeds: write one JSON object with 'text' a line")
    corpora, folder = find_corpora(root.absolute()), RunFolder(root=output.absolute())
    seeds_digest = file_digest(seeds)
    folder.claim("select", digest_of(settings.select, corpora.identity, seeds_digest, top))
    done = run_stages(select_stages(corpora, seeds, folder, top, settings.select), folder, settings.executor)
    return read_report(output) if done else None


def select_stages(
    corpora: Corpora, seeds: Path, folder: RunFolder, top: float, settings: SelectSettings
) -> list[Stage]:
    """The stages from files to files."""
    files, work = len(corpora.texts), folder.work
    names = [corpora.output_name(path) for path in corpora.texts]

    def read(stage: str) -> ReadDocuments:
        return ReadDocuments(corpora.texts, corpora.root, counts=folder.counts, progress=folder.progress(stage))

    return [
        Stage(name="1-frequencies", tasks=files, steps=[read("1-frequencies"), Frequencies(work, settings.features)]),
        Stage(name="2-direction", tasks=1, steps=[Direction(work, seeds.absolute(), settings)]),
        Stage(name="3-scores", tasks=files, steps=[read("3-scores"), Scores(work)]),
        Stage(name="4-threshold", tasks=1, steps=[Threshold(work, top)]),
        Stage(
            name="5-write",
            tasks=files,
            steps=[
                read("5-write"),
                KeepBest(work, DropLog(folder.dropped / "1-domain")),
                WriteCorpus(folder.corpora, names, counts=folder.counts),
            ],
        ),
        Stage(name=FINISH, tasks=1, steps=[HandOn(corpora, folder.corpora), Clean(work)]),
    ]


class Frequencies(PipelineStep):
    """Counts the documents that hold each feature, and sums their weights before idf."""

    type, name = "DOMAIN", "frequencies"

    def __init__(self, work: Path, features: int) -> None:
        super().__init__()
        self.folder, self.features = work / "frequencies", features

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:
        """Write one file a task: frequencies, weights, documents."""
        frequencies, weights, documents = np.zeros(self.features), np.zeros(self.features), 0
        for batch in in_batches(document.text for document in data or ()):
            counts = counts_of(batch, self.features)
            frequencies += np.bincount(counts.indices, minlength=self.features)
            weights += np.asarray(weighted(counts, np.ones(self.features)).sum(axis=0)).ravel()
            documents += len(batch)
        self.folder.mkdir(parents=True, exist_ok=True)
        np.savez(self.folder / f"{rank:05d}.npz", frequencies=frequencies, weights=weights, documents=documents)


class Direction(PipelineStep):
    """From all files' frequencies and the seeds to the direction that documents are measured along."""

    type, name = "DOMAIN", "direction"

    def __init__(self, work: Path, seeds: Path, settings: SelectSettings) -> None:
        super().__init__()
        self.work, self.seeds, self.settings = work, seeds, settings

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        """Write idf and direction."""
        frequencies, weights, documents = 0.0, 0.0, 0
        for path in sorted((self.work / "frequencies").glob("*.npz")):
            part = np.load(path)
            frequencies, weights = frequencies + part["frequencies"], weights + part["weights"]
            documents += int(part["documents"])
        idf = inverse_frequencies(np.asarray(frequencies), documents)
        background = np.asarray(weights) * idf
        background /= np.linalg.norm(background) or 1.0
        seeds = (str(record["text"]) for record in read_records(self.seeds, "text"))
        direction = direction_of(seeds, idf, background, self.settings.contrast)
        np.savez(self.work / "direction.npz", idf=idf, direction=direction)


class Scores(PipelineStep):
    """Scores every document."""

    type, name = "DOMAIN", "scores"

    def __init__(self, work: Path) -> None:
        super().__init__()
        self.work = work

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:
        """Write float32 [documents]."""
        known = np.load(self.work / "direction.npz")
        idf, direction = known["idf"], known["direction"]
        scores = [
            weighted(counts_of(batch, len(idf)), idf) @ direction
            for batch in in_batches(document.text for document in data or ())
        ]
        (self.work / "scores").mkdir(parents=True, exist_ok=True)
        np.save(self.work / "scores" / f"{rank:05d}.npy", np.concatenate([np.zeros(0), *scores]).astype(np.float32))


class Threshold(PipelineStep):
    """Finds the score that the wanted part of all documents reaches, by a histogram."""

    type, name = "DOMAIN", "threshold"

    def __init__(self, work: Path, top: float) -> None:
        super().__init__()
        self.work, self.top = work, top

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        """Write the threshold; documents of the last bin that is needed are all taken."""
        histogram = np.zeros(BINS, dtype=np.int64)
        for path in (self.work / "scores").glob("*.npy"):
            histogram += np.bincount(bins_of(np.load(path, mmap_mode="r")), minlength=BINS)
        wanted = int(np.ceil(self.top * histogram.sum()))
        from_the_top = np.cumsum(histogram[::-1])
        lowest = BINS - 1 - int(np.searchsorted(from_the_top, wanted))
        (self.work / "threshold.json").write_text(json.dumps({"lowest_bin": max(0, lowest)}))


def bins_of(scores: np.ndarray) -> np.ndarray:
    """Each score's place in the histogram."""
    return np.clip((scores.astype(np.float64) + 1) / 2 * BINS, 0, BINS - 1).astype(np.int64)


class KeepBest(PipelineStep):
    """Hands on the documents that reach the threshold."""

    type, name = "DOMAIN", "keep"

    def __init__(self, work: Path, log: DropLog) -> None:
        super().__init__()
        self.work, self.log = work, log

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The best documents, in their order."""
        lowest = json.loads((self.work / "threshold.json").read_text())["lowest_bin"]
        good = bins_of(np.load(self.work / "scores" / f"{rank:05d}.npy")) >= lowest
        with self.log as log:
            log.open(rank)
            for document, is_good in zip(data or (), good, strict=True):
                if is_good:
                    yield document
                else:
                    document.metadata["filter_reason"] = "other_domain"
                    log.write(document, rank)
