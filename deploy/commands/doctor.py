"""`trident doctor`."""

from __future__ import annotations

from pathlib import Path
from socket import socket
from textwrap import wrap
from typing import Annotated

import typer

MARGIN = 20
"""Columns of a check's status and name."""


def bind(host: str, port: int) -> socket:
    """As the gateway does it. Its modules are loaded only now: the packages that they need have been checked before."""
    from service import server

    return server.bind(host, port)


def fold(detail: str, columns: int | None) -> str:
    """What stands beside a check's name, in lines of a terminal; no word, path or address is cut."""
    if columns is None:
        return detail
    width = max(MARGIN, columns - MARGIN)
    lines = wrap(detail, width, break_long_words=False, break_on_hyphens=False)
    return f"\n{' ' * MARGIN}".join(lines)


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
    from shutil import get_terminal_size
    from sys import stdout

    from deploy.doctor import Status, examine
    from service.settings import PRETRAINED, read_settings

    checks = examine(
        host=host,
        port=port,
        bind=bind,
        read_settings=read_settings,
        bundle=bundle or PRETRAINED,
        triton_env=triton_env,
    )
    # What reads a pipe gets one line a check.
    columns = get_terminal_size().columns if stdout.isatty() else None
    found = []
    for check in checks:
        found.append(check)
        if not json:
            fix = f"  → {check.fix}" if check.fix else ""
            colour = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red"}[check.status]
            detail = fold(f"{check.detail}{fix}", columns)
            typer.echo(f"{typer.style(f'{check.status:<5}', fg=colour)}{check.name:<14} {detail}")
    if json:
        typer.echo(dumps([asdict(check) for check in found], ensure_ascii=False))
    if any(check.status is Status.FAIL for check in found):
        raise typer.Exit(1)
