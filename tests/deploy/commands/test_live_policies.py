"""`trident bench policies --url`: a running gateway beside its simulation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from deploy.commands.bench import app
from deploy.commands.live_policies import services_of
from deploy.commands.live_service import Beside
from service.batching.simulation.costs import Costs
from tests.service.api.running_gateway import RunningGateway, running_gateway
from tests.small_service import SmallService, serving

REQUESTS = 40


@pytest.fixture(scope="module")
def gateway(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with running_gateway(nano_bundle, tmp_path_factory.mktemp("gateway")) as running:
        yield running
        running.stop()


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    generator = np.random.default_rng(0)
    lines = [f"2023-11-16 18:15:{number:09.6f}0,{generator.integers(1, 700)},5" for number in range(REQUESTS)]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n", encoding="utf-8")
    return path


def bench(trace: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["policies", "--trace", str(trace), *options])


def test_a_running_gateway_is_replayed_to_beside_its_simulation(
    gateway: RunningGateway, nano_bundle: Path, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIDENT_BUNDLE", str(nano_bundle))
    kept = tmp_path / "folder" / "kept.json"
    answer = bench(trace, "--url", gateway.url, "--loads", "0.1,0.2", "--json", "--output", str(kept))
    assert answer.exit_code == 0, answer.output
    figures = json.loads(answer.stdout)
    assert [(each["policy"], each["load"]) for each in figures] == [("predictive", 0.1), ("predictive", 0.2)]
    for each in figures:
        outcomes = [each[name] for name in ("attained", "late", "rejected", "failed")]
        assert sum(outcomes) == pytest.approx(1)
        assert each["failed"] == 0
        assert each["goodput"] == pytest.approx(each["attained"] * each["load"])
        assert each["difference"] == pytest.approx(each["attained"] - each["simulated"]["attained"])
    assert figures[1]["compression"] == pytest.approx(2 * figures[0]["compression"])
    record = json.loads(kept.read_text(encoding="utf-8"))
    assert [len(each["ms"]) for each in record["figures"]] == [REQUESTS] * 2
    assert record["measured"]["predictive"]["batch_s"] >= 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--url", "best=http://127.0.0.1:1"), "there is no policy 'best': choose among predictive"),
        (("--url", "http://127.0.0.1:1", "--without", "ages"), "--without are for simulations"),
        (("--url", "http://127.0.0.1:1", "--loads", "x"), "--loads is 'x': give numbers"),
    ],
)
def test_an_option_that_cannot_be_used_is_named_in_one_line(trace: Path, options: tuple[str, ...], told: str) -> None:
    answer = bench(trace, *options)
    assert answer.exit_code == 2
    assert told in answer.stderr
    assert answer.stderr.count("\n") == 1


class NoTrident(SmallService):
    """Serves something else."""

    def get(self) -> None:
        self.reply(b"other_metric 1\n")


def test_what_is_no_trident_is_named() -> None:
    with (
        serving(NoTrident) as url,
        pytest.raises(ValueError, match="no metric trident_batch_size_count: it is no Trident"),
    ):
        services_of([url])[0].counted()
    with pytest.raises(ValueError, match=r"nothing answers at http://127\.0\.0\.1:1"):
        services_of(["http://127.0.0.1:1/"])[0].counted()


def test_a_url_may_name_its_policy() -> None:
    services = services_of(["http://host:1/", "dynamic=http://host:2"])
    assert [(each.policy, each.url) for each in services] == [
        ("predictive", "http://host:1"),
        ("dynamic", "http://host:2"),
    ]


def test_a_batch_costs_its_way_once_and_its_requests_their_share_each() -> None:
    costs = Beside(batch_s=2.0, request_s=0.5, error_ratio=0.0).added_to(Costs(1.0, 0.0, 0.1, 0.0))
    assert costs.predict_s(4, 10) == pytest.approx(1 + 2 + 4 * (0.5 + 1))
