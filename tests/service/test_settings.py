"""Names in the environment: every setting has one, and what is none is refused with the nearest that is."""

from __future__ import annotations

import os
import re
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
    with pytest.raises(ValueError, match="TRIDENT_SERVER is '9000x', which is not JSON") as caught:
        read_settings()
    assert "\n" not in str(caught.value)


NETWORK = "it should be an address, or a network without bits behind its length: 10.0.0.0/8"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LIMITS__BODY_BYTES", "abc", "TRIDENT_LIMITS__BODY_BYTES is 'abc': it should be a whole number"),
        ("LIMITS__BODY_BYTES", "1.5", "TRIDENT_LIMITS__BODY_BYTES is '1.5': it should be a whole number"),
        ("LIMITS__BODY_BYTES", "0", "TRIDENT_LIMITS__BODY_BYTES is '0': it should be at least 1"),
        ("LIMITS__TIMEOUT_S", "soon", "TRIDENT_LIMITS__TIMEOUT_S is 'soon': it should be a number"),
        ("LIMITS__TIMEOUT_S", "0", "TRIDENT_LIMITS__TIMEOUT_S is '0': it should be more than 0.0"),
        ("SERVER__PORT", "70000", "TRIDENT_SERVER__PORT is '70000': it should be at most 65535"),
        ("STATE__KEEP", "maybe", "TRIDENT_STATE__KEEP is 'maybe': it should be true or false"),
        ("SERVER__LOG_LEVEL", "loud", "it should be 'debug', 'info', 'warning' or 'error'"),
        ("LIMITS", '{"body": 1}', "TRIDENT_LIMITS__BODY is no setting"),
        ("LIMITS", '{"headers": "x"}', "TRIDENT_LIMITS__HEADERS is 'x': it should be a whole number"),
        ("LIMITS", "5", "TRIDENT_LIMITS is 5: it should be an object"),
        ("LIMITS__TRUSTED_PEERS", "10.0.0.1", "TRIDENT_LIMITS__TRUSTED_PEERS is '10.0.0.1', which is not JSON"),
        ("LIMITS__TRUSTED_PEERS", '"10.0.0.1"', "TRIDENT_LIMITS__TRUSTED_PEERS is '10.0.0.1': it should be an array"),
        ("LIMITS__TRUSTED_PEERS", '["10.0.0.1/8"]', f"TRIDENT_LIMITS__TRUSTED_PEERS__0 is '10.0.0.1/8': {NETWORK}"),
        ("LIMITS__TRUSTED_PEERS", '["proxy"]', f"TRIDENT_LIMITS__TRUSTED_PEERS__0 is 'proxy': {NETWORK}"),
        ("TRITON__URL", "http://triton:8001", "TRIDENT_TRITON__URL is 'http://triton:8001': it should be host:port"),
        ("LIMITS__BODY_BYTES", "99999999999", "limits.body_bytes_in_flight is 67108864, less than one body may have"),
    ],
)
def test_a_wrong_value_is_told_with_its_name_and_what_it_should_be(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    # Another setting that is no JSON, and need be none.
    monkeypatch.setenv("TRIDENT_BATCHING__POLICY", "immediate")
    monkeypatch.setenv(f"TRIDENT_{name}", value)
    with pytest.raises(ValueError, match="^" + re.escape(said) if said.startswith("TRI") else re.escape(said)) as told:
        read_settings()
    for raw in ("\n", "Input", "Value error", "validat", "pydantic"):
        assert raw not in str(told.value)


def test_what_the_command_line_says_goes_by_its_own_name() -> None:
    with pytest.raises(ValueError, match=r"^triton\.url is 'nowhere': it should be host:port"):
        read_settings(triton={"url": "nowhere"})


@pytest.mark.parametrize("command", [("service",), ("deploy", "serve")])
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("TRIDENT_BATCHIN__POLICY", "immediate", "did you mean TRIDENT_BATCHING__POLICY?"),
        ("TRIDENT_BATCHING__POLICY", "fastest", "TRIDENT_BATCHING__POLICY is 'fastest': it should be 'predictive'"),
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
