"""Environments of peers: made once, and again when what they are made of changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.benchmark.comparison import environments
from deploy.benchmark.comparison.environments import Environment, InstallationFailed, make_missing, versions
from deploy.benchmark.comparison.systems import DECODERS, SERVERS, choose

NOTHING = Environment(name="nothing", extras="", megabytes=1)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of the test's own; pip is not asked for anything."""
    for name in ("FOLDER", "REQUIREMENTS"):
        monkeypatch.setattr(environments, name, tmp_path)
    (tmp_path / "nothing.txt").write_text("", encoding="utf-8")
    monkeypatch.setattr(environments, "_run", lambda command: str((tmp_path / "nothing").mkdir(exist_ok=True)))
    return tmp_path


def test_an_environment_is_made_once_and_again_when_its_requirements_change(elsewhere: Path) -> None:
    said: list[str] = []
    assert not NOTHING.is_made
    make_missing([NOTHING], said.append)
    assert NOTHING.is_made
    assert any("about 1 MB" in each for each in said)
    said.clear()
    make_missing([NOTHING], said.append)
    assert said == []
    (elsewhere / "nothing.txt").write_text("package==2\n", encoding="utf-8")
    assert not NOTHING.is_made


def test_what_pip_says_is_told() -> None:
    with pytest.raises(InstallationFailed, match="No package metadata was found for no-such-package"):
        versions(SERVERS[0].python, ["no-such-package"])


def test_every_environment_pins_what_it_is_made_for() -> None:
    for each in (*SERVERS, *DECODERS):
        if each.environment is not None:
            path = environments.REQUIREMENTS / f"{each.environment.name}.txt"
            for line in path.read_text(encoding="utf-8").splitlines():
                assert "==" in line, f"{path} does not pin {line}"


def test_peers_are_chosen_by_their_keys() -> None:
    assert [each.key for each in choose("litserve-onnxruntime, trident-dynamic", SERVERS)] == [
        "litserve-onnxruntime",
        "trident-dynamic",
    ]
    assert choose("", SERVERS) == list(SERVERS)
    with pytest.raises(ValueError, match="there is no peer 'vllm': choose among trident-predictive, "):
        choose("vllm", SERVERS)
