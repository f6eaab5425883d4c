"""Stage 1 from files to files: what is kept, why the rest is not, and what kills, damage and other settings do."""

from __future__ import annotations

import bz2
import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.forks import Forks, command, completed
from tests.training.data.pipeline.prose import chinese, english, write_texts
from training.data.pipeline.filtering import filter_corpora
from training.data.pipeline.report import as_text, read_report
from training.data.pipeline.run_folder import RunFolder
from training.data.pipeline.settings import DataSettings, load_settings
from training.data.readers import read_records

SHORT = "The man went to the house of the woman and it was said that he had not been there before."
FRENCH = "Le marché de la ville était plein de gens qui achetaient des légumes et du pain pour toute la semaine. " * 5


def one_worker() -> DataSettings:
    return load_settings(None, workers=1)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A known corpus of either language, a folder of the user's own, and a labelled corpus."""
    root = tmp_path_factory.mktemp("raw")
    near = english(0).replace("river", "stream", 1) + " It was so."
    write_texts(root / "a/web.jsonl", [english(0), english(1), english(1).replace(". ", ".\n"), FRENCH, SHORT], "web")
    kept = [english(n) for n in range(2, 6)]
    write_texts(root / "wiki.jsonl", [near, *kept, kept[0] + " Write to anna.k@gmail.com soon."], "w")
    lines = "".join(json.dumps({"title": f"zh{n}", "text": chinese(n)}, ensure_ascii=False) + "\n" for n in range(4))
    (root / "wikipedia_zh").mkdir()
    (root / "wikipedia_zh/wiki_zh_00.jsonl.bz2").write_bytes(bz2.compress(lines.encode()))
    (root / "dialogsum").mkdir()
    (root / "dialogsum/dialogsum_train.jsonl.bz2").write_bytes(bz2.compress(b'{"dialogue": "x"}\n'))
    return root


@pytest.fixture(scope="module")
def filtered(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one worker; tests leave it as it is."""
    output = tmp_path_factory.mktemp("filtered") / "run"
    filter_corpora(corpora, output, one_worker())
    return output


def test_clean_texts_of_both_languages_are_kept_once(filtered: Path) -> None:
    found = {
        str(path.relative_to(filtered / "corpora")): [record.get("title") for record in read_records(path)]
        for path in sorted((filtered / "corpora").rglob("*.jsonl.bz2"))
    }
    assert found == {
        "dialogsum/dialogsum_train.jsonl.bz2": [None],
        "own_text/a_web.jsonl.bz2": ["web0", "web1"],
        "own_text/wiki.jsonl.bz2": ["w1", "w2", "w3", "w4"],
        "wikipedia_zh/wiki_zh_00.jsonl.bz2": ["zh0", "zh1", "zh2", "zh3"],
    }


def test_the_report_counts_every_document_once_and_shows_no_address(filtered: Path) -> None:
    report = read_report(filtered)
    reasons = {(entry.stage, entry.reason): entry.count for entry in report.dropped}
    assert reasons == {
        ("1-language", "language_fr"): 1,
        ("2-sensitive", "email"): 1,
        ("3-quality", "gopher_short_doc"): 1,
        ("4-duplicates", "exact_duplicate"): 1,
        ("4-duplicates", "near_duplicate"): 1,
    }
    assert (report.read, report.written) == (15, 10)
    assert report.read == report.written + sum(reasons.values())
    text = as_text(report)
    assert "[EMAIL]" in text
    assert "anna" not in text
    written = [path.read_text(encoding="utf-8") for path in (filtered / "dropped").rglob("*.json*")]
    assert not any("gmail" in content for content in written)


def test_nothing_of_the_work_is_left(filtered: Path) -> None:
    assert sorted(path.name for path in filtered.iterdir() if path.is_dir()) == ["corpora", "counts", "dropped", "logs"]


def test_two_workers_write_what_one_writes(corpora: Path, filtered: Path, tmp_path: Path) -> None:
    filter_corpora(corpora, tmp_path / "run", load_settings(None, workers=2))
    made = {p.relative_to(tmp_path / "run/corpora"): p.read_bytes() for p in (tmp_path / "run/corpora").rglob("*.bz2")}
    assert made == {p.relative_to(filtered / "corpora"): p.read_bytes() for p in (filtered / "corpora").rglob("*.bz2")}


def test_a_finished_run_is_not_run_again(corpora: Path, filtered: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in filtered.rglob("*.bz2")}
    report = filter_corpora(corpora, filtered, one_worker())
    assert report is not None
    assert report.written == 10
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_settings_run_is_refused(corpora: Path, filtered: Path) -> None:
    settings = one_worker()
    settings.filter.buckets = 9
    with pytest.raises(ValueError, match="other files or settings"):
        filter_corpora(corpora, filtered, settings)


def test_a_folder_of_something_else_is_not_touched(corpora: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="is not empty"):
        filter_corpora(corpora, tmp_path, one_worker())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_whose_process_was_killed_goes_on(corpora: Path, filtered: Path, tmp_path: Path) -> None:
    """Killed as soon as one file's rules are done; that file is not read again, the result is the same."""
    output = tmp_path / "run"
    arguments = ["data", "filter", corpora, "--output", output]
    completions = RunFolder(root=output).log("1-rules") / "completions"
    deadline = time.monotonic() + 60
    with Forks(command, *arguments, "--workers", 2) as process:
        while not list(completions.glob("*")) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in completions.glob("*")}
    assert done
    with pytest.raises(ValueError, match="not complete"):
        read_report(output)
    answer = completed(command, *arguments, "--workers", 1, "--json")
    assert answer.returncode == 0, answer.stderr
    told: dict[str, Any] = json.loads(answer.stdout)
    assert (told["read"], told["written"]) == (15, 10)
    assert {name: (completions / name).stat().st_mtime_ns for name in done} == done
    made = {p.relative_to(output / "corpora"): p.read_bytes() for p in (output / "corpora").rglob("*.bz2")}
    assert made == {p.relative_to(filtered / "corpora"): p.read_bytes() for p in (filtered / "corpora").rglob("*.bz2")}


def damaged(tmp_path: Path, name: str, content: bytes) -> Path:
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / name).write_bytes(content)
    return folder


WHOLE = (json.dumps({"title": "a", "text": english("damaged")}) + "\n").encode() * 50


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.bz2", bz2.compress(WHOLE)[:-40], "cut short"),
        ("a.jsonl.bz2", b"no bzip2 at all", "damaged"),
        ("a.jsonl", WHOLE[:-100], "line 50 is not JSON"),
        ("a.jsonl", WHOLE + b"{no json}\n", "line 51 is not JSON"),
        ("a.jsonl", WHOLE + '{"title": "é", "text": "é"}\n'.encode("latin-1"), "is not UTF-8"),
        ("a.jsonl", b'{"title": "a"}\n', "must be an object with text"),
        ("a.jsonl", b'{"text": 7}\n', "must be a string"),
        ("a.txt", b"plain", "holds no text"),
    ],
)
def test_damaged_input_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    folder = damaged(tmp_path, name, content)
    with pytest.raises(ValueError, match=message) as caught:
        filter_corpora(folder, tmp_path / "out", one_worker())
    assert str(folder) in str(caught.value)
    assert not list((tmp_path / "out").rglob("*.jsonl.bz2"))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        filter_corpora(tmp_path / "none", tmp_path / "out", one_worker())


def test_the_command_tells_a_damaged_file_in_one_line(tmp_path: Path) -> None:
    folder = damaged(tmp_path, "a.jsonl.bz2", bz2.compress(WHOLE)[:-40])
    answer = completed(command, "data", "filter", folder, "--output", tmp_path / "out")
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert (
        answer.stderr.splitlines()[-1]
        == f"error: {folder / 'a.jsonl.bz2'} ends too early: it is cut short; copy it again"
    )


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    write_texts(tmp_path / "in/a/b.jsonl", [english(0)])
    write_texts(tmp_path / "in/a_b.jsonl", [english(1)])
    with pytest.raises(ValueError, match=r"would both become own_text/a_b\.jsonl\.bz2"):
        filter_corpora(tmp_path / "in", tmp_path / "out", one_worker())


def test_an_empty_file_is_no_error(tmp_path: Path) -> None:
    write_texts(tmp_path / "in/a.jsonl", [english(0)])
    write_texts(tmp_path / "in/b.jsonl", [])
    report = filter_corpora(tmp_path / "in", tmp_path / "out", one_worker())
    assert report is not None
    assert (report.read, report.written) == (1, 1)
    shutil.rmtree(tmp_path / "out")
