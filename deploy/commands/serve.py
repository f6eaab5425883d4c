"""`trident serve`."""

from __future__ import annotations

import signal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from deploy.repository.profiles import Backend, ProfileName

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Runtime(StrEnum):
    """Where the models can run."""

    TRITON = "triton"
    LOCAL = "local"


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 0.0.0.0 is every one.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 takes a free one.", show_default="8000", min=0, max=65535)
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="Folder of the bundle.", show_default="the shipped one")] = None,
    repository: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the generated model repository.",
            show_default="model_repository; model_repository-2 … where that serves another bundle",
        ),
    ] = None,
    runtime: Annotated[
        Runtime | None,
        typer.Option(help="Where the models run.", show_default="triton; local where Triton cannot run"),
    ] = None,
    triton_url: Annotated[
        str | None, typer.Option(help="host:port of a running Triton's gRPC service, in place of starting one.")
    ] = None,
    triton_env: Annotated[
        Path | None,
        typer.Option(
            help="Environment with the nvidia-pytriton wheel.", envvar="TRIDENT_TRITON_ENV", show_default=".venv-triton"
        ),
    ] = None,
    triton_backends: Annotated[
        Path | None,
        typer.Option(help="Folder of further backends for the wheel's server.", envvar="TRIDENT_TRITON_BACKENDS"),
    ] = None,
    backend: Annotated[
        Backend | None,
        typer.Option(help="What runs the stateless models.", show_default="onnxruntime where the server has it"),
    ] = None,
    profile: Annotated[ProfileName, typer.Option(help="How the models use the machine.")] = ProfileName.CPU,
    start_timeout: Annotated[float, typer.Option(help="Seconds that Triton may take to become ready.", min=1)] = 120.0,
) -> None:
    """Serve a bundle over HTTP: start Triton, then the gateway. SIGTERM or Ctrl-C ends both, requests first."""
    from deploy.commands.runtime import models, read_settings
    from deploy.server.serving import TritonChoice
    from service.server import bind, run

    settings = read_settings(host=host, port=port, bundle=bundle, runtime=runtime, triton_url=triton_url)
    choice = TritonChoice(
        environment=triton_env,
        backends=triton_backends,
        backend=backend,
        repository=repository,
        profile=profile,
        start_timeout_s=start_timeout,
    )
    end_on_signals()
    with (
        bind(settings.server.host, settings.server.port) as listener,
        models(settings, choice, typer.echo) as reachable,
    ):
        address = url_of(settings.server.host, listener.getsockname()[1])
        typer.echo(f"Trident serves on {address}, its documentation on {address}/docs")
        run(reachable, listener)
        ignore_signals()


def end_on_signals() -> None:
    """Until the gateway takes the signals over, they end the program in order, and with status 0."""

    def end(*_: object) -> NoReturn:
        ignore_signals()
        raise SystemExit(0)

    for number in SIGNALS:
        signal.signal(number, end)


def ignore_signals() -> None:
    """Ending takes seconds, and a second signal (`timeout` sends two) must not cut it off."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def url_of(host: str, port: int) -> str:
    """The URL of a listening socket; IPv6 addresses in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
