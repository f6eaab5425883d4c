"""Prometheus and Grafana as they are shipped: every metric that is asked for exists, and every alert can fire."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics_core import Metric

from service.gateway import build_gateway
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS, GRAFANA = ROOT / "deploy" / "prometheus", ROOT / "deploy" / "grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards" / "trident.json").read_text(encoding="utf-8"))
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
TRITONS = {"nv_gpu_memory_used_bytes", "nv_gpu_utilization"}
"""Triton's own, where it has a GPU."""

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="needs promtool (Debian: apt install prometheus)"
)


@pytest.fixture(scope="module")
def families(nano_bundle: Path) -> list[Metric]:
    """What the gateway exports."""
    gateway = build_gateway(Settings(bundle=nano_bundle, runtime="local"))
    return list(gateway.metrics.registry.collect())


def panels() -> Iterator[dict[str, Any]]:
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            yield panel


def dashboard_queries() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def alert_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_metric_that_is_asked_for_exists(families: list[Metric]) -> None:
    exported = {family.name + suffix for family in families for suffix in SUFFIXES[family.type]}
    queries = [*dashboard_queries(), *(rule["expr"] for rule in alert_rules())]
    asked = {name for query in queries for name in re.findall(r"\b(?:trident|nv)_\w+", query)}
    assert len(asked) > 20
    assert asked - exported - TRITONS == set()


def test_every_metric_of_the_gateway_is_on_the_dashboard(families: list[Metric]) -> None:
    queries = "\n".join(dashboard_queries())
    assert [family.name for family in families if family.name not in queries] == []


def test_labels_that_are_asked_for_exist(families: list[Metric]) -> None:
    known = {label for family in families for sample in family.samples for label in sample.labels}
    # Series without samples yet, and what Prometheus and Triton add.
    known |= {"task", "code", "gpu", "instance", "job", "gpu_uuid"}
    for panel in panels():
        for target in panel["targets"]:
            legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            grouped = {
                label.strip()
                for labels in re.findall(r"\bby \(([^)]*)\)", target["expr"])
                for label in labels.split(",")
            }
            assert legend | grouped <= known
            assert not grouped or legend <= grouped, f"{panel['title']}: its sum has lost the label of its legend"


def test_panels_say_what_they_show_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    (source,) = read_yaml(GRAFANA / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert {panel["datasource"]["uid"] for panel in panels()} == {source["uid"]}
    (provider,) = read_yaml(GRAFANA / "provisioning" / "dashboards" / "trident.yml")["providers"]
    grafana = COMPOSE["services"]["grafana"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in grafana["volumes"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/trident.json"


def test_prometheus_scrapes_both_where_they_listen() -> None:
    config = read_yaml(PROMETHEUS / "prometheus.yml")
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    assert targets == {"gateway": ["gateway:8000"], "triton": ["triton:8002"]}
    assert set(targets) <= COMPOSE["services"].keys()
    assert config["rule_files"] == ["alerts.yml"]


@pytest.mark.parametrize("rule", alert_rules(), ids=lambda rule: rule["alert"])
def test_alerts_say_what_happened_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"].keys() == {"summary", "fix"}
    assert "for" in rule


def test_every_alert_is_tried() -> None:
    tried = read_yaml(ROOT / "tests" / "deploy" / "alerts_fire.yml")["tests"]
    fired = {check["alertname"] for case in tried for check in case["alert_rule_test"] if check["exp_alerts"]}
    assert fired == {rule["alert"] for rule in alert_rules()}


@needs_promtool
def test_promtool_accepts_configuration_and_rules() -> None:
    promtool("check", "config", PROMETHEUS / "prometheus.yml")


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", ROOT / "tests" / "deploy" / "alerts_fire.yml")


@needs_promtool
def test_every_query_of_the_dashboard_is_one(tmp_path: Path) -> None:
    rules = [
        {"record": f"query_{number}", "expr": query.replace("$__rate_interval", "1m")}
        for number, query in enumerate(dashboard_queries())
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    promtool("check", "rules", path)


def promtool(*arguments: str | Path) -> None:
    command = ["promtool", *map(str, arguments)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def read_yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))
