"""`trident repository`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.repository.profiles import Backend, ProfileName

app = typer.Typer(no_args_is_help=True, help="Generate what Triton serves from.")


@app.command()
def build(
    bundle: Annotated[Path | None, typer.Option(help="Folder of the bundle.", show_default="the shipped one")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the model repository.")] = Path(
        "model_repository"
    ),
    backend: Annotated[Backend, typer.Option(help="What runs the stateless models.")] = Backend.ONNXRUNTIME,
    profile: Annotated[ProfileName, typer.Option(help="How the models use the machine.")] = ProfileName.CPU,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Build even where it is up to date.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Lay a bundle out as a Triton model repository; what an earlier build left in the folder is replaced."""
    from deploy.commands.output import print_report
    from deploy.repository.build import build_repository
    from deploy.repository.profiles import PROFILES
    from service.settings import PRETRAINED

    result = build_repository(
        bundle or PRETRAINED, output, backend=backend, profile=PROFILES[profile], overwrite=overwrite
    )
    if json:
        print_report(result, as_json=True)
    else:
        state = "written" if result.rebuilt else "up to date"
        typer.echo(f"{output}: {', '.join(result.models)} of {result.bundle} for the {backend} backend, {state}")
