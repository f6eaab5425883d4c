"""The load generator and its tables."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from typer.testing import CliRunner

from deploy.benchmark import arrivals, load, report, workload
from deploy.commands.bench import app as bench_app
from tests.small_service import SmallService, serving


def test_poisson_arrivals_are_ordered_repeatable_and_have_the_rate() -> None:
    times = arrivals.poisson(50.0, 100.0, seed=1)
    assert np.all(np.diff(times) >= 0)
    assert abs(len(times) / 100.0 - 50.0) < 3.0
    np.testing.assert_array_equal(times, arrivals.poisson(50.0, 100.0, seed=1))


@pytest.mark.parametrize(("rate", "duration"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_a_rate_that_is_not_positive_is_refused(rate: float, duration: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        arrivals.poisson(rate, duration, seed=0)


def test_a_trace_is_replayed_in_compressed_time(tmp_path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens\n2023-11-16 18:15:46.6805900,3\n2023-11-16 18:15:50.6805900,4\n"
        "2023-11-16 18:15:48.6805900,9\n",
        encoding="utf-8",
    )
    np.testing.assert_allclose(arrivals.trace(path, duration_s=10.0, speedup=2.0), [0.0, 1.0, 2.0])
    np.testing.assert_allclose(arrivals.trace(path, duration_s=1.5, speedup=2.0), [0.0, 1.0])


def test_a_csv_without_timestamps_is_named(tmp_path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"no column TIMESTAMP \(it has: a, b\)"):
        arrivals.trace(path, duration_s=1.0, speedup=1.0)


def test_equal_seeds_give_equal_loads_in_the_asked_mix() -> None:
    mix = workload.parse_mix("generation=3,qa=1")
    first = list(islice(workload.built_in(mix, 16, seed=7), 400))
    assert first == list(islice(workload.built_in(mix, 16, seed=7), 400))
    share = sum(query.path == "/v1/generate" for query in first) / len(first)
    assert abs(share - 0.75) < 0.08
    assert all(1 <= query.body["max_new_tokens"] <= 16 for query in first if query.streams)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("generation=x", "TASK=WEIGHT"),
        ("generation=0", "must be positive"),
        ("qa=-1,generation=1", "must be positive"),
        ("qa=nan", "must be positive"),
        ("foo=1", "'foo' in the mix is no task: choose from generation, qa, summary"),
        ("qa=1,", "'' in the mix is no task"),
    ],
)
def test_a_bad_mix_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        workload.parse_mix(text)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no queries"),
        ('{"path": "/v1/qa", "body": {}}\n{"body": {}}\n', "line 2 is no query"),
        ("{", "line 1 is no query"),
    ],
)
def test_a_file_without_queries_is_refused_before_the_load_begins(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "queries.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        workload.from_file(tmp_path / "queries.jsonl")


def test_queries_of_a_file_come_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl").write_text('{"path": "/v1/generate", "body": {"stream": true}}\n', encoding="utf-8")
    first, second = islice(workload.from_file(tmp_path / "queries.jsonl"), 2)
    assert first == second == workload.Query(path="/v1/generate", body={"stream": True}, streams=True)


class Streams(SmallService):
    """Streams whose ends its paths name."""

    ENDS: ClassVar = {
        "/whole": b'data: {"delta": "a", "usage": {"completion_tokens": 3}}\n\ndata: [DONE]\n\n',
        "/error": b'data: {"delta": "a"}\n\ndata: {"error": {"code": "deadline_exceeded"}}\n\n',
        "/error-done": b'data: {"error": {"code": "unavailable"}}\n\ndata: [DONE]\n\n',
        "/truncated": b'data: {"delta": "a"}\n\n',
        "/broken": b"data: {\n\n",
    }

    def post(self, _body: bytes) -> None:
        self.reply(self.ENDS[self.path])


@pytest.fixture
def service() -> Iterator[str]:
    with serving(Streams) as url:
        yield url


async def test_a_stream_is_an_answer_only_where_it_ends_well(service: str) -> None:
    queries = [workload.Query(path=path, body={}, streams=True) for path in Streams.ENDS]
    samples = await load.run(service, np.zeros(len(queries)), iter(queries), 10.0, lambda _: None)
    errors = {sample.path: sample.error for sample in samples}
    assert errors == {
        "/whole": None,
        "/error": "deadline_exceeded",
        "/error-done": "unavailable",
        "/truncated": "truncated",
        "/broken": "not JSON",
    }
    assert {sample.status for sample in samples} == {200}
    result = {"name": "x", "settings": {"deadline_ms": 60_000}, "samples": [asdict(sample) for sample in samples]}
    figures = report.summarise(result)
    assert (figures["requests"], figures["failed"], figures["attainment"]) == (5, 4, 1 / 5)


async def test_a_service_that_is_not_there_gives_failed_samples(service: str) -> None:
    query = workload.Query(path="/whole", body={}, streams=True)
    (sample,) = await load.run("http://127.0.0.1:1", np.zeros(1), iter([query]), 10.0, lambda _: None)
    assert (sample.status, sample.error) == (0, "connection")


def bench(*arguments: str | Path) -> Any:
    return CliRunner().invoke(bench_app, [str(each) for each in arguments])


class Nothing(SmallService):
    """Is there, and answers no request of a load."""

    def get(self) -> None:
        self.reply(b"{}", status=404)

    def post(self, _body: bytes) -> None:
        self.reply(b"{}", status=500)


def test_figures_of_nothing_are_null_in_json_and_dashes_in_the_table(tmp_path: Path) -> None:
    with serving(Nothing) as url:
        command = ("load", "--url", url, "--rate", 20, "--duration", 0.2, "--output", tmp_path / "f.json")
        done = bench(*command, "--json")
    assert done.exit_code == 1
    figures = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert figures["failed"] == figures["requests"] > 0
    assert figures["ttft_ms_p50"] is figures["latency_ms_p95"] is None
    assert "| – / – | – / – |" in report.table([json.loads((tmp_path / "f.json").read_text())])


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://127.0.0.1:1", "nothing answers at http://127.0.0.1:1: connection refused; start it with `make serve`"),
        (
            "http://no-such-host.invalid:8000",
            "nothing answers at http://no-such-host.invalid:8000: name or service not",
        ),
        ("127.0.0.1:8000", "'127.0.0.1:8000' is no address of a service: write it as http://127.0.0.1:8000"),
        ("http://127.0.0.1:port", "'http://127.0.0.1:port' is no address of a service"),
    ],
)
def test_a_load_on_nothing_ends_before_it_begins(tmp_path: Path, url: str, told: str) -> None:
    done = bench("load", "--url", url, "--rate", 1, "--duration", 600, "--output", tmp_path / "f.json")
    assert isinstance(done.exception, ValueError)
    said = str(done.exception)
    assert said.replace("temporary failure in name resolution", "name or service not known").startswith(told)
    assert "Errno" not in said
    assert not (tmp_path / "f.json").exists()


LOADED = {"name": "run", "settings": {"deadline_ms": 1}, "samples": []}


def test_a_report_is_printed_and_written_only_where_a_document_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    document = tmp_path / "docs" / "benchmarks.md"
    document.parent.mkdir()
    document.write_text("<!-- begin load -->\n<!-- end load -->\n")
    (tmp_path / "f.json").write_text(json.dumps(LOADED))
    printed = bench("report", "f.json")
    assert printed.exit_code == 0
    assert printed.output == report.table([LOADED]) + "\n"
    assert document.read_text() == "<!-- begin load -->\n<!-- end load -->\n"
    assert bench("report", "f.json", "--document", document).exit_code == 0
    assert report.table([LOADED]) in document.read_text()


@pytest.mark.parametrize(
    ("content", "said"), [("", "is not JSON"), ("[]", "holds no JSON object"), ("{}", "holds no results")]
)
def test_a_file_without_results_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "f.json").write_text(content)
    done = bench("report", tmp_path / "f.json")
    assert isinstance(done.exception, ValueError)
    assert str(done.exception).startswith(f"{tmp_path / 'f.json'} {said}")


def test_a_load_needs_what_serving_needs_and_no_more() -> None:
    """`make bench` installs the extras `serve` and `compare`, which brings aiohttp."""
    code = (
        "import sys, deploy.commands.bench, deploy.benchmark.load, deploy.benchmark.report, deploy.benchmark.workload; "
        "loaded = 'aiohttp' in sys.modules; import deploy.benchmark.comparison.run; "
        "sys.exit(loaded or bool({'torch', 'transformers', 'onnx', 'openai'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_a_mix_of_unknown_tasks_is_told_before_the_load_begins(tmp_path: Path) -> None:
    done = bench("load", "--mix", "foo=1", "--output", tmp_path / "f.json")
    assert isinstance(done.exception, ValueError)
    assert "choose from generation, qa, summary" in str(done.exception)


def test_a_report_names_the_document_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text("{}")
    done = bench("report", tmp_path / "f.json", "--document", tmp_path / "none.md")
    assert isinstance(done.exception, ValueError)
    assert str(done.exception) == (
        f"there is no document {tmp_path / 'none.md'} to put the table into: name one with --document"
    )


def test_figures_count_failures_and_deadlines() -> None:
    sample = {"path": "/v1/generate", "late_s": 0.0, "pieces": 4, "tokens": 10}
    samples = [
        {**sample, "scheduled_s": 0.0, "status": 200, "ttft_s": 0.1, "total_s": 1.0},
        {**sample, "scheduled_s": 1.0, "status": 200, "ttft_s": 0.3, "total_s": 4.0},
        {**sample, "scheduled_s": 2.0, "status": 429, "ttft_s": None, "total_s": 0.01},
    ]
    figures = report.summarise({"name": "x", "settings": {"deadline_ms": 2000}, "samples": samples})
    assert figures["requests"] == 3
    assert figures["failed"] == 1
    assert figures["goodput_per_s"] == pytest.approx(1 / 5)
    assert figures["attainment"] == pytest.approx(1 / 3)
    assert figures["ttft_ms_p50"] == pytest.approx(200.0)
    assert figures["tokens_per_s"] == pytest.approx(4.0)


def test_a_table_replaces_only_its_own_section() -> None:
    text = "a\n<!-- begin load -->\nold\n<!-- end load -->\nb"
    replaced = report.replace_between(text, "load", "| new |")
    assert replaced == "a\n<!-- begin load -->\n| new |\n<!-- end load -->\nb"
    with pytest.raises(ValueError, match="begin other"):
        report.replace_between(text, "other", "")


def trained(**values: Any) -> dict[str, Any]:
    """What `bench train` writes."""
    result = {
        "preset": "teacher",
        "rows": 64,
        "source_tokens": 512,
        "target_tokens": 128,
        "compile": False,
        "activation_checkpointing": False,
        "tokens_per_s": 145_774.7,
        "step_s": [0.3, 0.25, 0.28],
        "mfu": 0.1422,
        "activation_peak_bytes": 29_126_170_500,
        "machine": {"device": "H100"},
    }
    return result | values


def test_a_table_of_training_has_medians_and_ranges_and_gaps_for_what_is_not_known() -> None:
    unknown = trained(compile=True, activation_checkpointing=True, mfu=None, activation_peak_bytes=None)
    assert report.training_table([trained(), trained(remark="warm"), unknown]).splitlines()[2:] == [
        "| teacher, H100 | 64 × (512 + 128) | eager | 146 | 280 (250 – 300) | 14.2% | 29.1 |",
        "| teacher, H100 | 64 × (512 + 128) | eager, warm | 146 | 280 (250 – 300) | 14.2% | 29.1 |",
        "| teacher, H100 | 64 × (512 + 128) | compile, activation checkpointing | 146 | 280 (250 – 300) | – | – |",
    ]


def test_a_report_tells_the_two_kinds_of_results_apart(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("<!-- begin training -->\n<!-- end training -->\n")
    for name, result in {"a": trained(), "b": trained(rows=7), "load": {"samples": [], "settings": {}}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    assert bench("report", *files, "--document", document, "--section", "training").exit_code == 0
    assert "| 7 × (512 + 128) |" in document.read_text()
    mixed = bench("report", files[0], tmp_path / "load.json", "--document", document, "--section", "training")
    assert "do not fit one table" in str(mixed.exception)
