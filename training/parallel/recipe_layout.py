"""The layout that a recipe asks for, and whether its network and batches can be shared so."""

from __future__ import annotations

import math

from model.configuration import HybridConfig
from training.config import Recipe
from training.layout import Layout, tensor_sizes, undivided


def lay_out(recipe: Recipe, config: HybridConfig, world_size: int) -> Layout:
    """The recipe's layout on `world_size` processes.

    Raises ValueError where it does not multiply to them, or divides what cannot be divided so, naming what would fit.
    """
    section = recipe.parallel
    others = section.tensor * section.pipeline * section.sequence
    if world_size % others or (section.data and section.data * others != world_size):
        raise ValueError(_misfit(recipe, world_size))
    layout = Layout(
        pipeline=section.pipeline,
        data=world_size // others,
        sequence=section.sequence,
        tensor=section.tensor,
        zero=section.zero,
    )
    _check_tensor(config, layout.tensor)
    _check_pipeline(config, layout.pipeline)
    _check_sequence(config, layout.tensor, layout.sequence)
    _check_rows(recipe, layout.data)
    return layout


def stages_at_most(config: HybridConfig) -> int:
    """Stages of one unit each: the layers, the source, the memory, and the losses of the two decoders."""
    return config.encoder_layers + config.decoder_layers + config.pointer_layers + 4


def _misfit(recipe: Recipe, world_size: int) -> str:
    section = recipe.parallel
    sizes = {name: getattr(section, name) for name in ("data", "tensor", "pipeline", "sequence")}
    told = ", ".join(f"{name} = {size}" for name, size in sizes.items() if size)
    others = section.tensor * section.pipeline * section.sequence
    if world_size % others == 0:
        fit = f"data = {world_size // others} fits, or data = 0, which takes what is left"
    else:
        fit = f"tensor × pipeline × sequence must divide {world_size}: {', '.join(map(str, _divisors(world_size)))}"
    product = math.prod(size or 1 for size in sizes.values())
    return f"parallel has {told}, for {product} processes or a multiple, but {world_size} were started; {fit}"


def _check_tensor(config: HybridConfig, tensor: int) -> None:
    if name := undivided(config, tensor):
        raise ValueError(
            f"parallel.tensor = {tensor} does not divide {name} = {getattr(config, name)} of preset "
            f"{config.preset!r}: choose one of {', '.join(map(str, tensor_sizes(config, config.num_heads)))}"
        )


def _check_pipeline(config: HybridConfig, pipeline: int) -> None:
    most = stages_at_most(config)
    if pipeline > most:
        raise ValueError(
            f"parallel.pipeline = {pipeline} has more stages than preset {config.preset!r} has parts to fill them: "
            f"choose at most {most}"
        )


def _check_sequence(config: HybridConfig, tensor: int, sequence: int) -> None:
    if sequence == 1:
        return
    heads = config.num_heads // tensor
    if heads % sequence:
        raise ValueError(
            f"parallel.sequence = {sequence} does not divide the {heads} heads that preset {config.preset!r} has on "
            f"each of {tensor} tensor-parallel processes: choose one of {', '.join(map(str, _divisors(heads)))}"
        )
    if config.recurrent_block is None:
        raise ValueError(
            f"parallel.sequence = {sequence} needs recurrences in blocks, but recurrent_block is None: choose a size, "
            "or parallel.sequence = 1"
        )


def _check_rows(recipe: Recipe, data: int) -> None:
    """Every part of a batch has as many rows of each kind, so that all processes compute alike."""
    parts = data * recipe.batch.micro_batches
    names = ("pretraining_rows", "instruction_rows", "qa_rows", "summary_rows")
    rows = {f"batch.{name}": getattr(recipe.batch, name) for name in names}
    if recipe.long.every:
        rows["long.rows"] = recipe.long.rows
    for name, count in rows.items():
        if count % parts:
            below, above = count // parts * parts, (count // parts + 1) * parts
            fit = f"{below} or {above}" if below else f"{above}"
            raise ValueError(
                f"{name} = {count} cannot be divided evenly among {data} data-parallel processes × "
                f"{recipe.batch.micro_batches} micro-batches: choose {fit}"
            )


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]
