"""`trident data`, `train` and `evaluate` as a user calls them: results, exit status 0, 1 and 2, one line of errors."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from deploy import cli
from model.tokenizer import load_tokenizer
from tests.forks import command, completed
from tests.training.conftest import WINDOW
from training.data.shards import read_all_info

Trident = Callable[..., tuple[int, str, str]]


@pytest.fixture
def trident(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Trident:
    """Runs the command line in this process: exit status, stdout, stderr."""

    def run(*arguments: str | Path | int) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["trident", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return run


def test_corpora_become_a_tokenizer_and_shards(trident: Trident, corpora: Path, tmp_path: Path, prepared: Path) -> None:
    status, told, _ = trident("data", "tokenizer", corpora, "--output", tmp_path / "tokenizer")
    assert status == 0
    assert told == f"{tmp_path / 'tokenizer'}: 32000 tokens\n"
    assert load_tokenizer(tmp_path / "tokenizer").get_vocab_size() == 32_000
    prepare = ("data", "prepare", corpora, "-o", tmp_path / "data", "--tokenizer", tmp_path / "tokenizer")
    status, told, _ = trident(*prepare, "--workers", 1, "--qa-window", WINDOW)
    assert status == 0
    tokens = sum(info.tokens for info in read_all_info(prepared))
    assert told.splitlines()[-1] == f"{tmp_path / 'data'}: 12 shards, {tokens:,} tokens"


def test_a_corpus_that_is_cut_short_is_told_in_one_line(
    corpora: Path, trained_tokenizer: Path, prepared: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(prepared, tmp_path / "data"))
    (tmp_path / "in/books_en").mkdir(parents=True)
    book = tmp_path / "in/books_en/books_en_00.jsonl.bz2"
    book.write_bytes((corpora / "books_en/books_en_00.jsonl.bz2").read_bytes()[:-20])
    arguments = ["data", "prepare", tmp_path / "in", "--output", output]
    answer = completed(command, *arguments, "--tokenizer", trained_tokenizer, "--qa-window", WINDOW)
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert answer.stderr.splitlines()[-1] == f"error: {book} ends too early: it is cut short; copy it again"


def test_two_workers_make_the_shards_that_one_makes(
    corpora: Path, trained_tokenizer: Path, tmp_path: Path, prepared: Path
) -> None:
    output = tmp_path / "data"
    arguments = ["data", "prepare", corpora, "--output", output, "--json", "--tokenizer", trained_tokenizer]
    answer = completed(command, *arguments, "--workers", 2, "--qa-window", WINDOW)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout.splitlines()[-1]) == [asdict(info) for info in read_all_info(prepared)]
    made = {path.relative_to(output): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert made == {path.relative_to(prepared): path.read_bytes() for path in prepared.rglob("*") if path.is_file()}


def test_figures_are_printed_as_json(trident: Trident, finished_run: Path, prepared: Path) -> None:
    weights = ("--checkpoint", finished_run / "weights")
    for task, file, key in (
        ("qa", "squad.json", "f1"),
        ("summary", "dialogsum.jsonl", "rougeL_best"),
        ("generation", "wikipedia_zh.wiki_zh_00.jsonl", "bits_per_byte"),
    ):
        asked = ("evaluate", task, "--data", prepared / "dev" / file, *weights, "--limit", 2)
        status, told, _ = trident(*asked)
        assert status == 0
        assert isinstance(json.loads(told)[key], float)
        assert trident(*asked, "--json")[:2] == (0, told)


def test_a_run_of_a_few_steps_says_what_it_did(trident: Trident, recipe_file: Path) -> None:
    recipe_file.write_text(recipe_file.read_text().replace("max_steps = 30", "max_steps = 2"))
    status, told, _ = trident("train", recipe_file)
    assert status == 0
    assert told.startswith(f"{recipe_file.parent / 'run/weights'}: 2 steps, ")
    # The run is over: it is only told where it stands.
    status, told, _ = trident("train", recipe_file, "--json")
    assert status == 0
    progress = json.loads(told.splitlines()[-1])
    assert progress["weights"] == str(recipe_file.parent / "run/weights")
    assert progress["step"] == 2
    assert progress["tokens"] > 0
    assert progress["elapsed_s"] > 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("train",),
        ("train", "recipe.toml", "--max-minutes", "0"),
        ("data", "prepare", "corpora"),
        ("data", "prepare", "corpora", "-o", "out", "--tokenizer", "t", "--workers", "0"),
        ("data", "prepare", "corpora", "-o", "out", "--tokenizer", "t", "--qa-window", "10"),
        ("evaluate", "qa"),
        ("evaluate", "qa", "--data", "f", "--limit", "0"),
        ("evaluate", "translation", "--data", "f"),
    ],
)
def test_bad_usage_is_status_2(trident: Trident, arguments: tuple[str, ...]) -> None:
    status, told, said = trident(*arguments)
    assert status == 2
    assert told == ""
    assert "Usage: trident" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "{tmp}/none.toml"), "there is no recipe {tmp}/none.toml"),
        (("data", "tokenizer", "{tmp}", "-o", "{tmp}/t"), "{tmp} holds none of the known corpora"),
        (("data", "prepare", "{tmp}", "-o", "{tmp}/d", "--tokenizer", "{tmp}"), "{tmp} holds no tokenizer.json"),
        (("evaluate", "qa", "--data", "{tmp}/f"), "say who answers"),
        (("evaluate", "qa", "--data", "{tmp}/f", "--checkpoint", "{tmp}"), "{tmp} holds no trained network"),
        (("evaluate", "summary", "--data", "{tmp}/f", "--url", "http://127.0.0.1:1"), "http://127.0.0.1:1 does not"),
        (("evaluate", "generation", "--data", "{tmp}/f"), "bits per byte need --checkpoint"),
    ],
)
def test_other_mistakes_are_one_line_and_status_1(
    trident: Trident, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    status, told, said = trident(*(each.format(tmp=tmp_path) for each in arguments))
    assert (status, told) == (1, "")
    (line,) = said.splitlines()
    assert line.startswith("error: " + message.format(tmp=tmp_path))


def test_missing_data_are_one_line_and_status_1(trident: Trident, tmp_path: Path, finished_run: Path) -> None:
    weights = ("--checkpoint", finished_run / "weights")
    status, _, said = trident("evaluate", "qa", "--data", tmp_path / "none.json", *weights)
    assert status == 1
    assert str(tmp_path / "none.json") in said.splitlines()[-1]
