"""Which models `trident serve` has ready: a Triton of its own, somebody else's, or the engine in the process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.commands.runtime import models, read_settings
from deploy.repository.profiles import Backend, ProfileName
from deploy.server import installation as server
from deploy.server.installation import Installation, TritonUnavailable, why_no_wheel
from deploy.server.launcher import answers_ready
from deploy.server.serving import TritonChoice
from deploy.triton.manifest import BundleError
from service.settings import Settings

Choose = Callable[..., TritonChoice]


@pytest.fixture
def choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Choose:
    """A choice with the repository in a folder of the test's own, where no environment is but a named one."""
    monkeypatch.setattr(server, "TRITON_ENV", tmp_path / "no-environment")

    def choose(
        environment: Path | None = None, backends: Path | None = None, backend: Backend | None = None
    ) -> TritonChoice:
        return TritonChoice(
            environment=environment,
            backends=backends,
            backend=backend,
            repository=tmp_path / "repository",
            profile=ProfileName.CPU,
            start_timeout_s=60,
        )

    return choose


def settings_for(bundle: Path, runtime: str | None = None, triton_url: str | None = None) -> Settings:
    return read_settings(host=None, port=None, bundle=bundle, runtime=runtime, triton_url=triton_url)


def test_the_command_line_wins_over_the_environment_and_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIDENT_SERVER__PORT", "9000")
    monkeypatch.setenv("TRIDENT_SERVER__HOST", "::1")
    monkeypatch.setenv("TRIDENT_SERVER__GRACE_S", "3")
    settings = read_settings(host=None, port=9001, bundle=None, runtime=None, triton_url=None)
    assert (settings.server.host, settings.server.port, settings.server.grace_s) == ("::1", 9001, 3)


def test_bad_settings_are_one_line_that_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIDENT_SERVER__PORT", "99999")
    monkeypatch.setenv("TRIDENT_RUNTIME", "cloud")
    with pytest.raises(ValueError, match=r"TRIDENT_SERVER__PORT is '99999': it should be at most 65535") as caught:
        read_settings(host=None, port=None, bundle=None, runtime=None, triton_url=None)
    assert "TRIDENT_RUNTIME is 'cloud'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://triton:8001", "triton", "triton:grpc"])
def test_a_triton_url_is_host_and_port(url: str) -> None:
    with pytest.raises(ValueError, match=r"triton\.url.*" + url):
        read_settings(host=None, port=None, bundle=None, runtime=None, triton_url=url)


def test_the_engine_in_the_process_needs_no_triton(nano_bundle: Path, choose: Choose) -> None:
    said: list[str] = []
    with models(settings_for(nano_bundle, "local"), choose(), said.append) as settings:
        assert settings.runtime == "local"
    assert not said


@pytest.mark.parametrize("wanted_by", ["command line", "environment"])
def test_somebody_else_s_triton_is_used_as_it_is(
    nano_bundle: Path, choose: Choose, monkeypatch: pytest.MonkeyPatch, wanted_by: str
) -> None:
    monkeypatch.setenv("TRIDENT_TRITON__URL" if wanted_by == "environment" else "UNRELATED", "triton:8001")
    given = settings_for(nano_bundle, triton_url="triton:8001" if wanted_by == "command line" else None)
    with models(given, choose(), pytest.fail) as settings:
        assert (settings.runtime, settings.triton.url) == ("triton", "triton:8001")


@pytest.mark.parametrize("runtime", ["local", None])
def test_a_damaged_bundle_is_refused_whatever_runs_it(
    nano_bundle: Path, tmp_path: Path, choose: Choose, runtime: str | None
) -> None:
    bundle = shutil.copytree(nano_bundle, tmp_path / "bundle")
    (bundle / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json"), models(settings_for(bundle, runtime), choose(), str):
        pytest.fail("served a damaged bundle")


def test_where_triton_cannot_run_one_line_says_so(
    nano_bundle: Path, choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    said: list[str] = []
    with models(settings_for(nano_bundle), choose(), said.append) as settings:
        assert settings.runtime == "local"
    (line,) = said
    assert line.startswith("Without Triton, with ONNX Runtime in this process: ")
    assert "\n" not in line


def test_triton_by_name_is_triton_or_an_error(
    nano_bundle: Path, choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TritonUnavailable), models(settings_for(nano_bundle, "triton"), choose(), str):
        pytest.fail("served without Triton")


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"environment": Path("/nowhere")}, "/nowhere is no Python environment"),
        ({"backend": Backend.PYTHON}, "no-environment does not exist: run `make serve`"),
        ({"backends": Path("/nowhere")}, "no-environment does not exist: run `make serve`"),
    ],
)
def test_what_was_asked_for_by_name_is_had_or_an_error(
    nano_bundle: Path, choose: Choose, monkeypatch: pytest.MonkeyPatch, chosen: dict[str, Path], message: str
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with (
        pytest.raises(TritonUnavailable) as caught,
        models(settings_for(nano_bundle), choose(**chosen), pytest.fail),
    ):
        pytest.fail("served with something else")
    assert message in str(caught.value) or why_no_wheel() == str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_backend_that_the_server_lacks_is_an_error_before_anything_starts(
    nano_bundle: Path, tmp_path: Path, installation: Installation, choose: Choose
) -> None:
    environment = Path(installation.environment["VIRTUAL_ENV"])
    with (
        pytest.raises(TritonUnavailable, match=r"has no onnxruntime backend: take --backend python, or .*--triton-b"),
        models(settings_for(nano_bundle), choose(environment, backend=Backend.ONNXRUNTIME), pytest.fail),
    ):
        pytest.fail("served with another backend")
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"runtime": "local"}, "none is with --runtime local"), ({"triton_url": "a:1"}, "one runs at --triton-url")],
)
def test_a_backend_is_for_a_triton_that_is_started_here(
    nano_bundle: Path, choose: Choose, settings: dict[str, str], message: str
) -> None:
    with (
        pytest.raises(ValueError, match=f"--backend python is for a Triton that is started here, and {message}"),
        models(settings_for(nano_bundle, **settings), choose(backend=Backend.PYTHON), pytest.fail),
    ):
        pytest.fail("served without that backend")


def test_a_triton_of_its_own_is_there_as_long_as_it_is_wanted(
    nano_bundle: Path, tmp_path: Path, installation: Installation, choose: Choose
) -> None:
    said: list[str] = []
    environment = Path(installation.environment["VIRTUAL_ENV"])
    with models(settings_for(nano_bundle), choose(environment), said.append) as settings:
        assert answers_ready(settings.triton.url)
        assert (tmp_path / "repository" / "generator" / "config.pbtxt").is_file()
    assert not answers_ready(settings.triton.url)
    assert any(settings.triton.url in line for line in said)
