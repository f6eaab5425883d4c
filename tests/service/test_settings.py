"""Names in the environment: every setting has one, and what is none is refused with the nearest that is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from service.setting_names import OF_THE_COMMAND_LINE, check_names
from service.settings import Settings, read_settings

ROOT = Path(__file__).resolve().parents[2]


def names(part: type[BaseModel] = Settings, prefix: str = "TRIDENT_") -> Iterator[str]:
    """Every leaf's name in the environment."""
    for name, field in part.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from names(inner, f"{prefix}{name.upper()}__")
        else:
            yield f"{prefix}{name.upper()}"


KNOWN = [*names(), *OF_THE_COMMAND_LINE]


@pytest.mark.parametrize("spell", [str.upper, str.lower])
def test_what_is_a_setting_passes_in_any_case(spell) -> None:
    check_names({spell(name): "1" for name in KNOWN}, Settings)
    check_names({"TRIDENT_SERVER": "{}", "PATH": "/bin", "TRIDENTINE": "1", "MY_TRIDENT_HOME": "1"}, Settings)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("TRIDENT_BATCHIN__POLICY", "TRIDENT_BATCHING__POLICY"),
        ("TRIDENT_BATCHING_POLICY", "TRIDENT_BATCHING__POLICY"),
        ("TRIDENT_BATCHING__POLCIY", "TRIDENT_BATCHING__POLICY"),
        ("trident_batching__polcy", "TRIDENT_BATCHING__POLICY"),
        ("TRIDENT_POLICY", "TRIDENT_BATCHING__POLICY"),
        ("TRIDENT_SERVER__PROT", "TRIDENT_SERVER__PORT"),
        ("TRIDENT_SERVER__PORT__NUMBER", "TRIDENT_SERVER__PORT"),
        ("TRIDENT_PORT", "TRIDENT_SERVER__PORT"),
        ("TRIDENT_BUNDEL", "TRIDENT_BUNDLE"),
        ("TRIDENT_TRITON__ENV", "TRIDENT_TRITON_ENV"),
        ("TRIDENT_TIMEOUT_S", "TRIDENT_LIMITS__TIMEOUT_S or TRIDENT_TRITON__TIMEOUT_S"),
    ],
)
def test_a_misspelt_name_is_an_error_that_names_the_nearest(
    monkeypatch: pytest.MonkeyPatch, wrong: str, meant: str
) -> None:
    monkeypatch.setenv(wrong, "9000")
    with pytest.raises(ValueError, match="is no setting") as caught:
        read_settings()
    assert str(caught.value) == f"{wrong} is no setting: did you mean {meant}?"


@given(st.sampled_from(KNOWN), st.data())
def test_two_letters_changed_about_is_named_by_what_was_meant(name: str, data: st.DataObject) -> None:
    start = len("TRIDENT_")
    place = data.draw(st.integers(start, len(name) - 2))
    wrong = name[:place] + name[place + 1] + name[place] + name[place + 2 :]
    if wrong in KNOWN:
        return
    with pytest.raises(ValueError, match=f"^{wrong} is no setting: did you mean TRIDENT_") as caught:
        check_names({wrong: "1"}, Settings)
    assert name in str(caught.value)


def test_a_name_like_no_other_is_refused_too() -> None:
    with pytest.raises(ValueError, match=r"TRIDENT_XYZ123 is no setting: service/settings\.py has them all"):
        check_names({"TRIDENT_XYZ123": "1"}, Settings)


def test_what_kubernetes_says_of_a_service_named_trident_is_no_mistake() -> None:
    for service in ("TRIDENT", "TRIDENT_GATEWAY"):
        told = {
            f"{service}_SERVICE_HOST": "10.0.0.1",
            f"{service}_SERVICE_PORT": "8000",
            f"{service}_SERVICE_PORT_HTTP": "8000",
            f"{service}_PORT": "tcp://10.0.0.1:8000",
            f"{service}_PORT_8000_TCP": "tcp://10.0.0.1:8000",
            f"{service}_PORT_8000_TCP_PROTO": "tcp",
            f"{service}_PORT_8000_TCP_PORT": "8000",
            f"{service}_PORT_8000_TCP_ADDR": "10.0.0.1",
        }
        check_names(told, Settings)


def test_a_part_that_is_not_json_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIDENT_SERVER", "9000x")
    with pytest.raises(ValueError, match=r'field "server"') as caught:
        read_settings()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", [("service",), ("deploy", "serve")])
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("TRIDENT_BATCHIN__POLICY", "immediate", "did you mean TRIDENT_BATCHING__POLICY?"),
        ("TRIDENT_BATCHING__POLICY", "fastest", "batching.policy"),
    ],
)
def test_mistakes_are_one_line_and_status_1_however_it_is_started(
    command: tuple[str, ...], name: str, value: str, said: str
) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        env={**os.environ, name: value},
    )
    assert (answer.returncode, answer.stdout) == (1, "")
    (line,) = answer.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line
