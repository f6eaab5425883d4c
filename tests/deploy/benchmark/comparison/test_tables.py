"""What a comparison's figures and tables say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from deploy.benchmark.comparison.questions import CAP, Asked, Shape, patience_s, shape_of
from deploy.benchmark.comparison.systems import SERVERS
from deploy.benchmark.comparison.tables import decoders_table, servers_table
from deploy.benchmark.questions import sized_questions
from deploy.benchmark.replay import Answers
from deploy.commands import peers
from deploy.commands.bench import app
from service.settings import PRETRAINED

QUESTIONS = sized_questions(PRETRAINED)


def asked(requests: int, work_s: float = 2.0) -> Asked:
    shape = Shape(source="drawn", offsets_s=np.linspace(0, 90, requests), tokens=np.full(requests, 20))
    return Asked(
        shape=shape,
        bodies=[b"{}"] * requests,
        patience_s=np.full(requests, 0.5),
        work_s=np.full(requests, work_s / requests),
    )


def test_refusals_of_either_kind_are_rejected_and_late_answers_are_no_goodput() -> None:
    question = asked(5)
    answers = Answers(
        schedule=question.at(0.5),
        status=np.array([200, 200, 429, 503, 0]),
        seconds=np.array([0.1, 0.9, 0.01, 0.01, 31.0]),
        held_up_s=np.zeros(5),
    )
    found = answers.figures(0.5)
    shares = {name: found[name] for name in ("attained", "late", "rejected", "failed", "goodput")}
    assert shares == pytest.approx({"attained": 0.2, "late": 0.2, "rejected": 0.4, "failed": 0.2, "goodput": 0.1})
    assert found["latency_ms_p50"] == pytest.approx(500)
    assert found["status"] == [200, 200, 429, 503, 0]


def test_a_load_says_by_how_much_it_plays_the_trace_faster() -> None:
    """90 s of trace whose requests raw ONNX Runtime answers in 2 s."""
    question = asked(5)
    for load, span_s in ((0.5, 4.0), (1.0, 2.0), (2.0, 1.0)):
        assert question.at(load).arrivals_s[-1] == pytest.approx(span_s)
        assert question.compression(load) == pytest.approx(90 / span_s)
    assert question.capacity_per_s == pytest.approx(2.5)
    assert patience_s(np.array([0.001, 0.1])).tolist() == pytest.approx([0.05, 0.5])


def test_a_shape_is_the_traces_or_drawn_alike_for_equal_seeds(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,3,1\n2023-11-16 18:15:50.6805900,4000,1\n",
        encoding="utf-8",
    )
    recorded = shape_of(trace, 10, QUESTIONS, seed=0)
    assert recorded.offsets_s.tolist() == pytest.approx([0.0, 4.0])
    assert recorded.tokens.tolist() == [QUESTIONS.shortest, min(CAP, QUESTIONS.longest)]
    one, same, other = (shape_of(None, 50, QUESTIONS, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.tokens, same.tokens)
    np.testing.assert_array_equal(one.offsets_s, same.offsets_s)
    assert one.offsets_s[0] == 0.0
    assert (one.tokens != other.tokens).any()


def server(name: str, *highest: float) -> dict[str, Any]:
    """Rounds in which everything is kept up to a load, and nothing at 1.5."""
    rounds = []
    for load in highest:
        runs = [
            {"load": load, "attained": 0.95, "goodput_per_s": 20.0, "latency_ms_p50": 40.0},
            {"load": 1.5, "attained": 0.0, "goodput_per_s": 10.0, "latency_ms_p50": 900.0},
        ]
        rounds.append({"alone_ms": 35.0, "saturation_per_s": 40.0, "resident_bytes": 3e8, "runs": runs})
    return {"name": name, "setting": {"PEER_DELAY_MS": "2"}, "rounds": rounds}


def test_servers_are_compared_by_the_medians_of_their_rounds() -> None:
    _, _, ours, theirs = servers_table([server("Ours", 0.9, 0.8, 0.7), server("Theirs", 0.4)]).splitlines()
    assert ours.startswith("| Ours | 0.80 (0.70 – 0.90) | 1.00 | 10.0 | 25% | 40.0 | 35 | 300 |")
    assert theirs.startswith("| Theirs | 0.40 (0.40 – 0.40) | 0.50 |")
    assert "`PEER_DELAY_MS=2`" in theirs


def test_decoders_are_compared_by_what_they_write_after_the_first_token() -> None:
    rounds = [
        {
            "settings": {"source_tokens": 512, "new_tokens": 11},
            "runs": [{"rows": 8, "first_s": [1.0, 9.0, 1.0], "whole_s": [2.0, 2.0, 3.0]}],
        }
    ]
    lines = decoders_table([{"name": "Ours", "rounds": rounds}, server("A server", 0.5)]).splitlines()
    assert lines[0] == "| decoder | first token of 8 × 512, s | tokens /s, 8 rows |"
    assert lines[2:] == ["| Ours | 1.00 | 80 |"]


def test_a_quick_comparison_takes_the_settings_that_were_found_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "RESULTS", tmp_path)
    best = {"PEER_DELAY_MS": "10", "PEER_MAX_BATCH_SIZE": "32"}
    (tmp_path / "litserve-onnxruntime.json").write_text(json.dumps({"setting": best}), encoding="utf-8")
    no_more_tried = {"setting": {"PEER_DELAY_MS": "99"}}
    (tmp_path / "ray-onnxruntime.json").write_text(json.dumps(no_more_tried), encoding="utf-8")
    chosen = peers._chosen(SERVERS)
    assert chosen["litserve-onnxruntime"] == best
    assert "ray-onnxruntime" not in chosen


def test_an_unknown_peer_is_told_before_anything_is_installed(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["peers", "--only", "vllm", "--output", str(tmp_path / "results")])
    assert done.exit_code == 2
    assert not (tmp_path / "results").exists()
