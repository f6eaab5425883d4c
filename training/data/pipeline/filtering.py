"""Stage 1, `trident data filter`: language, sensitive content, quality, exact and near duplicates.

rules        one task a file: rules, cheap ones first; what passes is kept and signed
exact        one task: equal signatures
near         one task a bucket, then one that joins the pairs
write        one task a file: what repeats an earlier document is left out, the rest is written
finish       labelled corpora handed on, counts written, work files removed
"""

from __future__ import annotations

from pathlib import Path

from training.data.pipeline import duplicates
from training.data.pipeline.documents import (
    Clean,
    Corpora,
    HandOn,
    ReadDocuments,
    ReadKept,
    WriteCorpus,
    WriteKept,
    find_corpora,
)
from training.data.pipeline.drops import DropLog
from training.data.pipeline.execution import FINISH, RunFolder, Stage, run_stages
from training.data.pipeline.language import LanguageFilter
from training.data.pipeline.quality import QualityFilter
from training.data.pipeline.report import RunReport, read_report
from training.data.pipeline.sensitive import SensitiveFilter
from training.data.pipeline.settings import DataSettings, FilterSettings, digest_of


def filter_corpora(root: Path, output: Path, settings: DataSettings) -> RunReport | None:
    """Filter every text under `root` into `output/corpora`; None where Slurm will do it.

    Raises ValueError for a folder without text, damaged files, and an output that holds something else.
    """
    corpora, folder = find_corpora(root.absolute()), RunFolder(root=output.absolute())
    if len(corpora.texts) > duplicates.MOST_FILES:
        raise ValueError(f"{root} holds {len(corpora.texts)} files; at most {duplicates.MOST_FILES} can be compared")
    folder.claim("filter", digest_of(settings.filter, corpora.identity))
    done = run_stages(filter_stages(corpora, folder, settings.filter), folder, settings.executor)
    return read_report(output) if done else None


def filter_stages(corpora: Corpora, folder: RunFolder, settings: FilterSettings) -> list[Stage]:
    """The stages from files to files."""
    files, work = len(corpora.texts), folder.work
    config = duplicates.minhash(settings.shingle_words, settings.buckets, settings.hashes)
    names = [corpora.output_name(path) for path in corpora.texts]
    return [
        Stage(
            name="1-rules",
            tasks=files,
            steps=[
                ReadDocuments(corpora.texts, corpora.root, counts=folder.counts, progress=folder.progress("1-rules")),
                LanguageFilter(settings.languages, DropLog(folder.dropped / "1-language")),
                SensitiveFilter(
                    abuse_words=settings.abuse_words,
                    abuse_share=settings.abuse_share,
                    exclusion_writer=DropLog(folder.dropped / "2-sensitive"),
                ),
                QualityFilter(DropLog(folder.dropped / "3-quality")),
                WriteKept(work / "kept"),
                *duplicates.signatures(work, config),
            ],
        ),
        Stage(name="2-exact", tasks=1, steps=[duplicates.find_exact(work)]),
        Stage(name="3-near", tasks=settings.buckets, steps=[duplicates.find_near(work, config)]),
        Stage(name="4-groups", tasks=1, steps=[duplicates.group_near(work)]),
        Stage(
            name="5-write",
            tasks=files,
            steps=[
                ReadKept(work / "kept"),
                duplicates.drop_duplicates(work, DropLog(folder.dropped / "4-duplicates")),
                WriteCorpus(folder.corpora, names, counts=folder.counts),
            ],
        ),
        Stage(name=FINISH, tasks=1, steps=[HandOn(corpora, folder.corpora), Clean(work)]),
    ]
