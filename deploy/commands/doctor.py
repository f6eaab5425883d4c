"""`trident doctor`."""

from __future__ import annotations

from pathlib import Path
from socket import socket
from typing import Annotated

import typer


def bind(host: str, port: int) -> socket:
    """As the gateway does it. Its modules are loaded only now: the packages that they need have been checked before."""
    from service import server

    return server.bind(host, port)


def doctor(
    host: Annotated[str, typer.Option(help="Address that the service would listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port that it would listen on.", min=0, max=65535)] = 8000,
    bundle: Annotated[Path | None, typer.Option(help="Folder of the bundle.", show_default="the shipped one")] = None,
    triton_env: Annotated[
        Path | None,
        typer.Option(
            help="Environment with the nvidia-pytriton wheel.", envvar="TRIDENT_TRITON_ENV", show_default=".venv-triton"
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Check everything that serving needs; exit status 1 where something would keep the service from starting."""
    from dataclasses import asdict
    from json import dumps

    from deploy.doctor import Status, examine
    from service.settings import PRETRAINED

    checks = examine(host=host, port=port, bind=bind, bundle=bundle or PRETRAINED, triton_env=triton_env)
    found = []
    for check in checks:
        found.append(check)
        if not json:
            fix = f"  → {check.fix}" if check.fix else ""
            colour = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red"}[check.status]
            typer.echo(f"{typer.style(f'{check.status:<5}', fg=colour)}{check.name:<14} {check.detail}{fix}")
    if json:
        typer.echo(dumps([asdict(check) for check in found], ensure_ascii=False))
    if any(check.status is Status.FAIL for check in found):
        raise typer.Exit(1)
