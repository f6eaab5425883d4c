"""The slowed link that overlap is measured on, and the table of what was measured."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from tests.training.parallel.ranks import on_ranks
from training.parallel.overlap import BEGIN, END, document, exposed, per_round, table
from training.parallel.slow_link import SlowLink, Slowness

DELAY_S = 0.3
DOCS = Path(__file__).resolve().parents[3] / "docs"


def waits() -> tuple[float, float, bool]:
    """Seconds waited for an exchange at once, and for one that a longer computation hid; whether both were right."""
    link = SlowLink(None, Slowness(delay_s=DELAY_S), blocking=False)
    sent = torch.arange(4.0).view(2, 2) + 10 * link.rank
    first = link.start(sent).finish()
    at_once = link.waited_s
    link.reset()
    exchange = link.start(sent)
    time.sleep(2 * DELAY_S)  # stands for a computation, of known length
    second = exchange.finish()
    expected = torch.stack([torch.arange(2.0) + 2 * link.rank + 10 * rank for rank in range(2)])
    link.close()
    return at_once, link.waited_s, torch.equal(first, expected) and torch.equal(second, expected)


def test_a_delay_is_waited_for_unless_something_hides_it() -> None:
    for at_once, hidden, right in on_ranks(2, waits):
        assert right
        assert at_once >= DELAY_S * 0.99
        assert hidden < DELAY_S / 2


def test_bandwidth_is_shared_in_the_order_of_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 100.0)
    link = SlowLink.__new__(SlowLink)
    link.slowness, link.free_at_s = Slowness(bytes_per_s=1_000.0, delay_s=1.0), 0.0

    class Done:
        def wait(self) -> None: ...

    arrivals = [link._times_s(Done(), 500)[1] for _ in range(3)]
    assert arrivals == pytest.approx([101.5, 102.0, 102.5])


def test_shares_are_of_each_rounds_step(tmp_path: Path) -> None:
    def sample(*, overlap: bool, waited: float) -> dict:
        return {"overlap": overlap, "ranks": [{"step_s": 2.0, "waited_s": waited, "waited_for_ranks_s": 0.2}] * 2}

    setting = {"ranks": 2, "rows": 8, "turns": 4, "delay_ms": 5.0, "megabytes_per_s": 0.0}
    run = {
        "setting": setting,
        "samples": [sample(overlap=way, waited=w) for way, w in [(False, 1.0), (True, 0.2), (False, 0.8)]],
    }
    assert per_round(run, exposed, overlap=False) == [0.5, 0.4]
    line = "| 2 | 5 ms | 8 | 4 | 45% (40% – 50%) | 10% (10% – 10%) | 0.22 | 35% → 0%, 0.00 | 2.0 → 2.0 s |"
    assert line in table({"runs": [run]})
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    document(page, {"runs": [run]})
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text


def test_the_pages_table_is_that_of_the_samples() -> None:
    results = json.loads((DOCS / "results/overlap.json").read_text(encoding="utf-8"))
    assert table(results) in (DOCS / "sequence-parallelism.md").read_text(encoding="utf-8")
