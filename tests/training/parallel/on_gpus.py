"""Parity of layouts of two processes with one, on two GPUs through NCCL.

    python -m tests.training.parallel.on_gpus RESULTS.json

Not a test of the suite, which does without GPUs; with fewer than two the processes compute on the CPU. Products are in
float32 and recurrences PyTorch's own, as there: TF32, in which a GPU trains, rounds by more than the limit.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

import training.engines.making
import training.train
from model.tokenizer import save_tokenizer, train_tokenizer
from tests.training.parallel.conftest import STEPS, write
from tests.training.parallel.launching import largest_difference, launch_torchrun
from tests.training.parallel.test_parity import LIMIT
from tests.training.tiny_corpora import write_corpora
from training.config import load_recipe
from training.data.prepare import prepare, tokenizer_texts

LAYOUTS = {
    "data 2": "data = 2",
    "tensor 2": "tensor = 2",
    "pipeline 2": "pipeline = 2",
    "sequence 2": "sequence = 2",
    "ZeRO-1": "zero = 1",
    "ZeRO-2": "zero = 2",
    "ZeRO-3": "zero = 3\nwhole_below = 0",
}
ONE_PROCESS = ("tests.training.parallel.on_gpus", "train")
"""This module's command for one process of a run."""


def compare(results: Path, device: str) -> None:
    """Run every layout, and write after each what was found."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpora, tokenizer, data = folder / "corpora", folder / "tokenizer", folder / "data"
        write_corpora(corpora)
        save_tokenizer(train_tokenizer(tokenizer_texts(corpora)), tokenizer)
        prepare(corpora, data, tokenizer, workers=1, qa_window=64)
        single = write(folder, data, tokenizer, "single", device=device)
        launch_torchrun(single, 1, ONE_PROCESS)
        for layout, parallel in LAYOUTS.items():
            recipe = write(folder, data, tokenizer, layout.replace(" ", "_"), parallel, device=device)
            launch_torchrun(recipe, 2, ONE_PROCESS)
            difference = largest_difference(recipe.with_suffix(""), single.with_suffix(""))
            print(f"{layout}: {difference:.2g}, the limit is {LIMIT}")
            rows.append({"layout": layout, "processes": 2, "largest_loss_difference": difference})
            results.write_text(json.dumps({**about(device), "rows": rows}, indent=1) + "\n")


def about(device: str) -> dict[str, object]:
    """What the figures are."""
    return {
        "what": f"largest difference of any loss of any step, {STEPS} steps, against one process, fp32",
        "limit": LIMIT,
        "device": f"2 × {torch.cuda.get_device_name()}" if device == "cuda" else device,
        "torch": str(torch.__version__),
        "deepspeed": version("deepspeed"),
    }


def train_exactly(recipe: Path) -> None:
    """One process of a run."""
    training.make_engine.join_recurrences = lambda network, device: None
    training.train.choose_kernels = lambda: torch.set_float32_matmul_precision("highest")
    training.train.train(load_recipe(recipe))


if __name__ == "__main__":
    if sys.argv[1] == ONE_PROCESS[-1]:
        train_exactly(Path(sys.argv[2]))
    else:
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
        compare(Path(sys.argv[1]), "cuda" if torch.cuda.device_count() > 1 else "cpu")
