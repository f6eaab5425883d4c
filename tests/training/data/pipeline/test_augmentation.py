"""Stage 2 with tiny translation models: texts come back changed, copies are left out, kills lose a batch at most."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.training.data.pipeline.prose import chinese, write_texts
from tests.training.data.pipeline.tiny_translator import ENGLISH, PIVOT, SYNONYMS, text, train_translator
from training.data.catalogue import find_files
from training.data.pipeline import augmentation
from training.data.pipeline.augmentation import Translate, augment_corpora, keep_whole_lines
from training.data.pipeline.execution import RunFolder
from training.data.pipeline.report import RunReport
from training.data.pipeline.settings import AugmentSettings, DataSettings, load_settings
from training.data.pipeline.translation import Translator
from training.data.readers import read_records

FIVE_PIVOTS = Path(augmentation.__file__).with_name("five_pivots.toml")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`forward` and `backward`."""
    folder = tmp_path_factory.mktemp("models")
    losses = [
        train_translator(folder / "forward", dict(zip(ENGLISH, PIVOT, strict=True))),
        train_translator(folder / "backward", {p: SYNONYMS.get(w, w) for w, p in zip(ENGLISH, PIVOT, strict=True)}),
    ]
    assert max(losses) < 0.2
    return folder


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six English texts in two files, and a Chinese one."""
    root, chance = tmp_path_factory.mktemp("corpora"), random.Random(5)
    write_texts(root / "a.jsonl", [text(chance, 12) for _ in range(4)], "a")
    write_texts(root / "b.jsonl", [text(chance, 12), chinese(0), text(chance, 12)], "b")
    return root


@pytest.fixture(autouse=True)
def any_text_is_english(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny models' sentences are of no language that an identifier knows."""
    monkeypatch.setattr(augmentation, "language_of", lambda text: "en" if text.isascii() else "zh")


def settings(models: Path, **pivots: str) -> DataSettings:
    made = load_settings(None, workers=1)
    routes = {
        name: {"forward": str(models / "forward"), "backward": str(models / back)} for name, back in pivots.items()
    }
    made.augment = AugmentSettings(pivots=routes, batch_sentences=16, max_tokens=16)
    return made


def augmented(output: Path) -> dict[str, list[dict[str, str]]]:
    return {path.name: list(read_records(path)) for path in sorted((output / "corpora/augmented").glob("*.bz2"))}


def test_texts_come_back_with_other_words_under_their_titles(models: Path, corpora: Path, tmp_path: Path) -> None:
    report = augment_corpora(corpora, tmp_path / "out", settings(models, fr="backward"))
    assert isinstance(report, RunReport)
    made = augmented(tmp_path / "out")
    assert {name: [r["title"] for r in records] for name, records in made.items()} == {
        "fr_own_text_a.jsonl.bz2": ["a0", "a1", "a2", "a3"],
        "fr_own_text_b.jsonl.bz2": ["b0", "b2"],
    }
    originals = {r["title"]: r["text"] for path in corpora.glob("*.jsonl") for r in read_records(path)}
    for record in (record for records in made.values() for record in records):
        before, after = originals[record["title"]].split(), record["text"].split()
        expected = [SYNONYMS.get(word, word) for word in before]
        assert sum(a == b for a, b in zip(expected, after, strict=False)) > 0.9 * len(before)
        assert before != after
    assert (report.read, report.written) == (14, 13)
    assert [(entry.stage, entry.reason, entry.count) for entry in report.dropped] == [
        ("1-translation", "other_language", 1)
    ]
    names = {file.source.name for file in find_files(tmp_path / "out/corpora")}
    assert names == {"own_text", "augmented"}


def test_what_comes_back_unchanged_and_second_translations_alike_are_left_out(models: Path, tmp_path: Path) -> None:
    chance = random.Random(6)
    plain = [word for word in ENGLISH if word not in SYNONYMS]
    unchanged = "\n".join(" ".join(chance.sample(plain, 5)) + " ." for _ in range(12))
    write_texts(tmp_path / "in/a.jsonl", [unchanged, text(chance, 12), text(chance, 12)])
    report = augment_corpora(tmp_path / "in", tmp_path / "out", settings(models, fr="backward", ru="backward"))
    assert report is not None
    assert {entry.stage for entry in report.dropped} == {"2-duplicates"}
    assert sum(entry.count for entry in report.dropped) == 4  # the unchanged one twice, and both of `ru`
    kept = {name: [r["title"] for r in records] for name, records in augmented(tmp_path / "out").items()}
    assert kept == {"fr_own_text_a.jsonl.bz2": ["t1", "t2"], "ru_own_text_a.jsonl.bz2": []}


def test_a_killed_translation_goes_on_after_the_last_whole_line(
    models: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augmentation, "DOCUMENTS_AT_ONCE", 1)
    made = settings(models, fr="backward").augment
    found = augmentation.find_corpora(corpora)
    folders = [RunFolder(root=tmp_path / name) for name in ("whole", "killed")]
    steps = [Translate(found, made.routes, made, folder.work / "kept", folder) for folder in folders]
    whole = [document.text for document in steps[0].run(rank=0)]
    lines = (folders[0].work / "translated/00000.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    half = folders[1].work / "translated/00000.jsonl"
    half.parent.mkdir(parents=True)
    half.write_text(json.dumps("as it was") + "\n" + lines[1] + lines[2][:9], encoding="utf-8")
    resumed = [document.text for document in steps[1].run(rank=0)]
    assert half.read_text(encoding="utf-8").splitlines(keepends=True)[1:] == lines[1:]
    assert resumed == whole[1:]  # "as it was" is too short to be kept


def test_half_a_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert keep_whole_lines(path) == 0
    path.write_bytes(b'"a"\n"b"\n"c')
    assert keep_whole_lines(path) == 2
    assert path.read_bytes() == b'"a"\n"b"\n'


def test_batches_do_not_change_a_translation(models: Path) -> None:
    chance = random.Random(9)
    texts = [text(chance, 5), "", text(chance, 3)]
    made = []
    for batch in (1, 16):
        translator = Translator(
            str(models / "forward"), batch_sentences=batch, max_tokens=16, num_beams=1, device="cpu"
        )
        made.append(translator.translate(texts))
    assert made[0] == made[1]
    assert [len(part.splitlines()) for part in made[0]] == [5, 0, 3]


def test_degenerate_translations_have_a_reason(models: Path, corpora: Path, tmp_path: Path) -> None:
    made = settings(models, fr="backward").augment
    folder = RunFolder(root=tmp_path)
    step = Translate(augmentation.find_corpora(corpora), made.routes, made, tmp_path, folder)
    original = " ".join(ENGLISH)
    assert step.fault(original, None) == "other_language"
    assert step.fault(original, "river") == "length_differs"
    assert step.fault(original, "river " * len(ENGLISH)) == "repeats_itself"
    assert step.fault(original, " ".join(reversed(ENGLISH))) is None


def test_a_folder_that_holds_no_model_is_named(models: Path, corpora: Path, tmp_path: Path) -> None:
    broken = settings(models, fr="backward")
    broken.augment.pivots["fr"]["backward"] = str(corpora)
    with pytest.raises(ValueError, match="is no translation model"):
        augment_corpora(corpora, tmp_path / "out", broken)
    broken.augment.pivots["fr"]["backward"] = str(tmp_path / "none")
    with pytest.raises(ValueError, match="there is no translation model"):
        augment_corpora(corpora, tmp_path / "out2", broken)


def test_no_pivots_are_an_error(corpora: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pivot languages"):
        augment_corpora(corpora, tmp_path / "out", load_settings(None, workers=1))


def test_five_pivot_languages_are_configured() -> None:
    routes = load_settings(FIVE_PIVOTS).augment.routes
    assert [route.language for route in routes] == ["de", "es", "fr", "ru", "zh"]
