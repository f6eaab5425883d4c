"""What a run tells where nobody looks at a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.runlog import METRICS, RunLog


def test_without_a_terminal_every_line_of_the_metrics_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path, tensorboard=False) as log:
        log.tell("training nano on 1 × CPU, into [a folder]")
        for step in (1, 2):
            log.count(tokens=100)
            log.record(step, step / 2, {"loss": 3.0 / step})
    told = capsys.readouterr()
    first, one, two = told.err.splitlines()
    assert first == "training nano on 1 × CPU, into [a folder]"
    assert one.startswith("step 1  loss 3.000  ")
    assert one.endswith(" k tokens/s  50% done")
    assert two.startswith("step 2  loss 1.500  ")
    assert told.out == ""
    assert [json.loads(line)["step"] for line in (tmp_path / METRICS).read_text().splitlines()] == [1, 2]


def test_a_silent_log_tells_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path / "run", tensorboard=False, silent=True) as log:
        log.tell("anything")
        log.record(1, 0.5, {"loss": 3.0})
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "run").exists()
