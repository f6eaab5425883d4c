"""What `trident doctor` finds, and that its fixes are the right ones."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import doctor
from deploy.commands.doctor import MARGIN, fold
from deploy.doctor import Status
from deploy.server import installation as server
from deploy.server.installation import TRITON_ENV, Installation
from service.settings import read_settings

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str | Path) -> tuple[int, dict[str, dict[str, str]]]:
    command = [sys.executable, "-m", "deploy", "doctor", "--json", *map(str, arguments)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    return answer.returncode, {check["name"]: check for check in json.loads(answer.stdout)}


def test_a_sound_machine_passes(installation: Installation, nano_bundle: Path) -> None:
    status, checks = run("--port", "0", "--bundle", nano_bundle)
    assert status == 0
    for name in ("python", "packages", "triton", "libpython", "port", "bundle"):
        assert checks[name]["status"] == "ok", checks[name]
    assert str(TRITON_ENV) in checks["triton"]["detail"]
    assert "trident-nano, fp32" in checks["bundle"]["detail"]


def test_a_damaged_bundle_and_a_taken_port_fail(tmp_path: Path, nano_bundle: Path) -> None:
    bundle = shutil.copytree(nano_bundle, tmp_path / "bundle")
    (bundle / "MODEL_CARD.md").write_text("changed")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, checks = run("--port", str(port), "--bundle", bundle)
    assert status == 1
    assert (checks["port"]["status"], checks["bundle"]["status"]) == ("fail", "fail")
    assert str(port) in checks["port"]["detail"]
    assert "MODEL_CARD.md" in checks["bundle"]["detail"]


def test_a_missing_triton_is_a_warning_for_the_models_run_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(server, "TRITON_ENV", tmp_path / "missing")
    check = doctor.check_triton(None)
    assert check.status is Status.WARN
    assert "the models run in the gateway's process" in check.detail


def test_an_environment_that_was_named_and_is_none_fails(tmp_path: Path) -> None:
    check = doctor.check_triton(tmp_path / "missing")
    assert check.status is Status.FAIL
    assert f"{tmp_path / 'missing'} is no Python environment" in check.detail
    assert "the models run" not in check.detail


def test_a_missing_libpython_names_its_package(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "probe", lambda _: {"python": "3.11", "libpython": None})
    check = doctor.check_libpython(tmp_path)
    assert check.status is Status.WARN
    assert "install the package libpython3.11" in check.fix


@pytest.mark.parametrize(("limit", "status"), [("1000000000", Status.WARN), ("max", Status.OK)])
def test_a_container_s_memory_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, status: Status
) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    monkeypatch.setattr(doctor, "CGROUP_LIMIT", tmp_path / "memory.max")
    monkeypatch.setattr(doctor, "NEEDED_MEMORY", 1_000_000_001 if limit != "max" else 1)
    assert doctor.check_memory().status is status


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SERVING_MODULES", ("json", "no_such_module"))
    check = doctor.check_packages()
    assert check.status is Status.FAIL
    assert "no_such_module" in check.detail
    assert "[serve]" in check.fix


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("TRIDENT_BATCHIN__POLICY", "dynamic", "did you mean TRIDENT_BATCHING__POLICY?"),
        ("TRIDENT_LIMITS__HEADRS", "9", "did you mean TRIDENT_LIMITS__HEADERS?"),
        ("TRIDENT_SERVER__PORT", "http", "TRIDENT_SERVER__PORT is 'http'"),
        ("TRIDENT_LIMITS__CONNECTIONS", "0", "TRIDENT_LIMITS__CONNECTIONS is '0': it should be at least 1"),
        ("TRIDENT_LIMITS__TRUSTED_PEERS", "10.0.0.0", "TRIDENT_LIMITS__TRUSTED_PEERS is '10.0.0.0', which is not JSON"),
        ("TRIDENT_LIMITS__TRUSTED_PEERS", '["10.0.0"]', "TRIDENT_LIMITS__TRUSTED_PEERS__0 is '10.0.0'"),
    ],
)
def test_a_wrong_setting_fails_and_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str) -> None:
    monkeypatch.setenv(name, value)
    check = doctor.check_settings(read_settings)
    assert check.status is Status.FAIL
    assert told in check.detail
    assert "\n" not in check.detail


def test_right_settings_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIDENT_LIMITS__TRUSTED_PEERS", '["10.0.0.0/8"]')
    assert doctor.check_settings(read_settings).status is Status.OK


def test_the_command_reads_them(nano_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIDENT_BATCHIN__POLICY", "dynamic")
    status, checks = run("--port", "0", "--bundle", nano_bundle)
    assert (status, checks["settings"]["status"]) == (1, "fail")


@pytest.mark.parametrize("columns", [10, 60, 80, 200])
def test_a_check_folds_into_its_terminal(columns: int) -> None:
    detail = "TRIDENT_BATCHIN__POLICY is no setting: did you mean TRIDENT_BATCHING__POLICY?  → unset it"
    lines = fold(detail, columns).split("\n")
    assert " ".join(" ".join(lines).split()) == " ".join(detail.split())
    assert all(line.startswith(" " * MARGIN) for line in lines[1:])
    longest_word = max(map(len, detail.split()))
    assert all(len(line.strip()) <= max(columns - MARGIN, longest_word) for line in lines)
    assert fold(detail, None) == detail
