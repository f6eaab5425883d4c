"""Stage 3: documents like the seeds come out on top, exactly as many as asked, in either language."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.training.data.pipeline.prose import chinese, english, write_texts
from training.data.pipeline.domain import counts_of, direction_of, features_of, inverse_frequencies, weighted
from training.data.pipeline.report import RunReport
from training.data.pipeline.selection import BINS, bins_of, select_corpora
from training.data.pipeline.settings import load_settings
from training.data.readers import read_records

MEDICAL = ["patient", "fever", "dose", "surgeon", "artery", "vaccine", "tumour", "clinic", "symptom", "therapy"]
MEDICAL_ZH = ("病人發燒", "醫師手術", "疫苗劑量", "臨床症狀", "腫瘤治療")


def medical(seed: int) -> str:
    chance = random.Random(f"medical {seed}")
    words = english(f"medical {seed}").split(" ")
    for place in chance.sample(range(len(words)), len(words) // 8):
        words[place] = chance.choice(MEDICAL)
    return " ".join(words)


def medical_chinese(seed: int) -> str:
    chance = random.Random(f"medical {seed}")
    return "，".join(part + chance.choice(MEDICAL_ZH) for part in chinese(f"medical {seed}").split("，"))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """54 texts and 6 medical ones in two files; seeds are other medical ones."""
    root = tmp_path_factory.mktemp("select")
    texts = [*(english(n) for n in range(30)), *(medical(n) for n in range(3))]
    write_texts(root / "in/en.jsonl", random.Random(0).sample(texts, len(texts)), "en")
    texts = [*(chinese(n) for n in range(24)), *(medical_chinese(n) for n in range(3))]
    write_texts(root / "in/zh.jsonl", random.Random(1).sample(texts, len(texts)), "zh")
    write_texts(
        root / "seeds.jsonl", [*(medical(100 + n) for n in range(4)), *(medical_chinese(100 + n) for n in range(4))]
    )
    return root


def select(corpora: Path, output: Path, top: float = 0.1, workers: int = 1) -> RunReport:
    report = select_corpora(corpora / "in", corpora / "seeds.jsonl", output, top, load_settings(None, workers=workers))
    assert report is not None
    return report


def test_the_top_tenth_is_the_domain_in_both_languages(corpora: Path, tmp_path: Path) -> None:
    report = select(corpora, tmp_path / "out")
    chosen = [r["text"] for path in (tmp_path / "out/corpora").rglob("*.bz2") for r in read_records(path)]
    assert sorted(chosen) == sorted([*(medical(n) for n in range(3)), *(medical_chinese(n) for n in range(3))])
    assert (report.read, report.written) == (60, 6)
    assert {entry.reason: entry.count for entry in report.dropped} == {"other_domain": 54}


def test_two_workers_select_what_one_selects(corpora: Path, tmp_path: Path) -> None:
    made = []
    for workers in (1, 2):
        select(corpora, tmp_path / str(workers), 0.3, workers)
        root = tmp_path / str(workers) / "corpora"
        made.append({path.relative_to(root): path.read_bytes() for path in root.rglob("*.bz2")})
    assert made[0] == made[1]


def test_everything_can_be_selected(corpora: Path, tmp_path: Path) -> None:
    assert select(corpora, tmp_path / "out", 1.0).written == 60


@pytest.mark.parametrize("top", [0.0, -0.1, 1.5])
def test_an_impossible_part_is_refused(corpora: Path, tmp_path: Path, top: float) -> None:
    with pytest.raises(ValueError, match=r"top must be in \(0, 1\]"):
        select(corpora, tmp_path / "out", top)


def test_missing_and_empty_seeds_are_named(corpora: Path, tmp_path: Path) -> None:
    settings = load_settings(None, workers=1)
    with pytest.raises(ValueError, match="there is no file of seeds"):
        select_corpora(corpora / "in", tmp_path / "none.jsonl", tmp_path / "out", 0.1, settings)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="holds no seeds"):
        select_corpora(corpora / "in", tmp_path / "empty.jsonl", tmp_path / "out", 0.1, settings)
    assert not (tmp_path / "out").exists()


def test_weights_are_those_of_scikit_learn() -> None:
    from sklearn.feature_extraction.text import TfidfTransformer

    texts = [english(n) for n in range(12)] + [chinese(n) for n in range(4)]
    counts = counts_of(texts, 4_096)
    theirs = TfidfTransformer(sublinear_tf=True).fit(counts)
    frequencies = np.bincount(counts.indices, minlength=4_096)
    idf = inverse_frequencies(frequencies, len(texts))
    np.testing.assert_allclose(idf, theirs.idf_)
    np.testing.assert_allclose(weighted(counts, idf).toarray(), theirs.transform(counts).toarray())


def test_what_all_documents_share_does_not_count() -> None:
    idf, background = np.ones(2_048), np.asarray(counts_of(["the of and"], 2_048).todense()).ravel()
    background /= np.linalg.norm(background)
    direction = direction_of(["the of and vaccine"], idf, background, 1.0)
    assert float(direction @ background) == pytest.approx(0, abs=1e-12)
    assert np.linalg.norm(direction) == pytest.approx(1)


def test_chinese_is_compared_by_pairs_of_characters() -> None:
    assert list(features_of("The 疫苗劑 Dose 量")) == ["the", "疫苗", "苗劑", "dose"]


def test_scores_of_every_size_have_a_bin() -> None:
    assert bins_of(np.array([-1.0, 0.0, 1.0, 1.5], np.float32)).tolist() == [0, BINS // 2, BINS - 1, BINS - 1]
