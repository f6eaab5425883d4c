"""What must hold before a run takes its first step, and writes its first file."""

from __future__ import annotations

import json
from pathlib import Path

from model.configuration import HybridConfig
from model.tokenizer import TOKENIZER_FILES, load_tokenizer
from training.config import Recipe
from training.data.shards import read_all_info
from training.digests import tokenizer_digest


def check_recipe(recipe: Recipe, config: HybridConfig) -> None:
    """Raises ValueError where a recipe does not fit its network, tokenizer, data or output folder."""
    check_lengths(recipe, config)
    check_tokenizer(recipe.data.tokenizer)
    check_vocabulary(recipe, config)
    check_output(recipe)


def check_lengths(recipe: Recipe, config: HybridConfig) -> None:
    """Raises ValueError for targets longer than the decoders' position tables."""
    targets = {
        "batch.target_tokens": recipe.batch.target_tokens,
        "batch.summary_tokens": recipe.batch.summary_tokens,
        "long.target_tokens": recipe.long.target_tokens if recipe.long.every else 0,
    }
    limit = config.max_target_positions
    for name, tokens in targets.items():
        if tokens > limit:
            raise ValueError(f"{name} is {tokens}, above the network's max_target_positions = {limit}: lower it")


def check_tokenizer(folder: Path) -> None:
    """What is copied beside the weights at the end. Raises ValueError where it is missing or damaged."""
    load_tokenizer(folder)
    for name in TOKENIZER_FILES:
        if not (folder / name).is_file():
            raise ValueError(f"data.tokenizer: {folder} holds no {name}; make one with: trident data tokenizer")


def check_vocabulary(recipe: Recipe, config: HybridConfig) -> None:
    """Raises ValueError where tokenizer and network have vocabularies of different sizes, or the prepared data were
    made with another tokenizer: their numbers would mean other tokens, and the run learn nothing of use."""
    folder, root = recipe.data.tokenizer, recipe.data.folder
    tokens = load_tokenizer(folder).get_vocab_size()
    if tokens != config.vocab_size:
        raise ValueError(
            f"data.tokenizer: {folder} has {tokens:,} tokens, the network's vocab_size is {config.vocab_size:,}: "
            f"set model.overrides = {{ vocab_size = {tokens} }}, or choose the tokenizer that the network is for"
        )
    wanted = tokenizer_digest(folder)
    again = f"run trident data prepare again with --tokenizer {folder}"
    for info in read_all_info(root):
        if not info.tokenizer:
            raise ValueError(f"{root}: shard {info.name} does not say which tokenizer made it; {again}")
        if info.tokenizer != wanted:
            raise ValueError(
                f"{root}: shard {info.name} was made with a tokenizer of SHA-256 {info.tokenizer}, but data.tokenizer "
                f"{folder} has {wanted}: name the tokenizer that the data were made with, or {again}"
            )


def check_output(recipe: Recipe) -> None:
    """Raises ValueError where another network's run, or something else, lies in the run's folder."""
    if recipe.run.output.is_file():
        raise ValueError(f"run.output: {recipe.run.output} is a file: name a folder")
    path = recipe.run.output / "recipe.json"
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): delete it, the run writes it again") from error
        if before["model"] != recipe.as_dict()["model"]:
            raise ValueError(
                f"{recipe.run.output} holds a run of {before['model']}, the recipe asks for "
                f"{recipe.as_dict()['model']}: choose another run.output, or remove that folder"
            )
