"""A recipe: one TOML file that says everything about a training run.

Sections are dataclasses, keys are their fields; a key that no field knows is an error, so a typo never trains
something else for an hour.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from training.tables import from_table

PRECISIONS = ("bf16", "fp16", "fp32")
OPTIMIZERS = ("muon", "adamw")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(kw_only=True, slots=True)
class ModelSection:
    """[model]"""

    preset: str
    """teacher, student or nano."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of HybridConfig that differ from the preset's."""


@dataclass(kw_only=True, slots=True)
class DataSection:
    """[data]"""

    folder: Path
    """What `trident data prepare` wrote."""
    tokenizer: Path
    """Folder of tokenizer.json; copied beside the weights' provenance."""
    workers: int = 0
    """Processes that build batches; 0 builds them in the training process."""
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least(self, "workers", 0)


@dataclass(kw_only=True, slots=True)
class BatchSection:
    """[batch]: rows of every kind in every step, so that all shapes are known before the first."""

    pretraining_rows: int
    instruction_rows: int
    qa_rows: int
    summary_rows: int
    source_tokens: int
    """Width of the source, task token included."""
    target_tokens: int
    """Width of a continuation or an answer to an instruction."""
    summary_tokens: int
    """Width of a summary."""
    micro_batches: int = 1
    """Parts that a process computes one after the other, adding up their gradients: less memory, and what a pipeline
    keeps its stages busy with."""

    def __post_init__(self) -> None:
        for name in ("pretraining_rows", "instruction_rows", "qa_rows", "summary_rows", "micro_batches"):
            _at_least(self, name, 1)
        for name in ("source_tokens", "target_tokens", "summary_tokens"):
            _at_least(self, name, 16)

    @property
    def rows(self) -> int:
        """Rows of a step."""
        return self.pretraining_rows + self.instruction_rows + self.qa_rows + self.summary_rows

    @property
    def tokens(self) -> int:
        """Source and target tokens of a step, padding included."""
        generative = (self.pretraining_rows + self.instruction_rows) * self.target_tokens
        return self.rows * self.source_tokens + generative + self.summary_rows * self.summary_tokens


@dataclass(kw_only=True, slots=True)
class LongSection:
    """[long]: every so often a step of few, long rows, so that the far positions are learnt too."""

    every: int = 0
    """Steps from one to the next; 0: never."""
    rows: int = 8
    source_tokens: int = 2_048
    target_tokens: int = 512

    def __post_init__(self) -> None:
        _at_least(self, "every", 0)
        _at_least(self, "rows", 1)


@dataclass(kw_only=True, slots=True)
class ObjectivesSection:
    """[objectives]"""

    mask_fraction: float = 0.25
    """Part of a pretraining row's tokens to guess."""
    unmasked_rows: float = 0.15
    """Part of the pretraining rows without any masked token: what the served model reads."""
    short_prompts: float = 0.25
    """Part of the pretraining rows cut to a short prompt."""
    task_token_dropout: float = 0.3
    """Chance that a row starts with <s> and the router has to find its task."""
    masked_weight: float = 1.0
    continuation_weight: float = 1.0
    qa_weight: float = 1.0
    summary_weight: float = 1.0
    router_weight: float = 0.1

    @property
    def weights(self) -> dict[str, float]:
        """By the names of the objectives."""
        suffix = "_weight"
        names = (each.name for each in fields(self) if each.name.endswith(suffix))
        return {name.removesuffix(suffix): getattr(self, name) for name in names}

    def __post_init__(self) -> None:
        for name in ("mask_fraction", "unmasked_rows", "short_prompts", "task_token_dropout"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"objectives.{name} must be in [0, 1), got {value}")


@dataclass(kw_only=True, slots=True)
class MixtureSection:
    """[mixture]: weight of each source within its task: `early`, then in a line to `late`."""

    begin: int
    """The step up to which the early weights stand."""
    end: int
    """The step from which the late ones do."""
    qa_early: dict[str, float]
    qa_late: dict[str, float]
    summary_early: dict[str, float]
    summary_late: dict[str, float]
    instruction: dict[str, float]

    def __post_init__(self) -> None:
        _at_least(self, "begin", 0)
        _at_least(self, "end", self.begin + 1)
        for name in ("qa_early", "qa_late", "summary_early", "summary_late", "instruction"):
            table = getattr(self, name)
            if any(isinstance(weight, bool) or not isinstance(weight, (int, float)) for weight in table.values()):
                raise ValueError(f"mixture.{name} must hold numbers, got {table}")
            if sum(table.values()) <= 0 or min(table.values()) < 0:
                raise ValueError(f"mixture.{name} must hold weights that are not negative, nor all zero, got {table}")


@dataclass(kw_only=True, slots=True)
class OptimizerSection:
    """[optimizer]"""

    kind: str = "muon"
    """muon: Muon for the matrices of the layers, AdamW for the rest, every tensor clipped by itself. adamw: AdamW for
    all, clipped together; what divides matrices among processes needs it."""
    matrix_learning_rate: float = 3e-3
    learning_rate: float = 2e-3
    beta1: float = 0.9
    beta2: float = 0.98
    matrix_weight_decay: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest norm of the gradient."""

    def __post_init__(self) -> None:
        if self.kind not in OPTIMIZERS:
            raise ValueError(f"optimizer.kind must be one of {', '.join(OPTIMIZERS)}, got {self.kind!r}")
        for name in ("matrix_learning_rate", "learning_rate", "clip"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"optimizer.{name} must be positive, got {value}")


@dataclass(kw_only=True, slots=True)
class ParallelSection:
    """[parallel]: how many processes share what; the product of the four is the number of processes."""

    data: int = 0
    """Parts of a batch; 0: as many as processes are left."""
    tensor: int = 1
    """Parts of every attention, feed-forward network and of the vocabulary."""
    pipeline: int = 1
    """Stages of consecutive layers."""
    sequence: int = 1
    """Parts of a source's tokens."""
    zero: int = 0
    """What data-parallel processes divide rather than repeat: 1 the optimizer's state, 2 gradients, 3 weights too."""
    whole_below: int = 100_000
    """ZeRO-3 leaves weights of fewer elements whole: gathering them costs more than it saves."""

    def __post_init__(self) -> None:
        for name in ("data", "whole_below"):
            _at_least(self, name, 0)
        for name in ("tensor", "pipeline", "sequence"):
            _at_least(self, name, 1)
        if self.zero not in range(4):
            raise ValueError(f"parallel.zero must be 0, 1, 2 or 3, got {self.zero}")


@dataclass(kw_only=True, slots=True)
class MemorySection:
    """[memory]: time given for memory."""

    activation_checkpointing: bool = False
    """Keep the inputs of layers only, and compute the rest again in the backward pass."""
    offload_optimizer: bool = False
    """Keep the optimizer's state, and its step, on the CPU."""


@dataclass(kw_only=True, slots=True)
class ScheduleSection:
    """[schedule]: linear warm-up, constant, linear decay to zero at the end of the run."""

    warmup_steps: int
    decay_fraction: float = 0.3
    """Last part of the run in which the rate falls."""
    max_steps: int | None = None
    max_minutes: float | None = None
    """Wall clock since the first step, summed over resumptions. The run ends with whichever limit comes first."""

    def __post_init__(self) -> None:
        if self.max_steps is None and self.max_minutes is None:
            raise ValueError("schedule needs max_steps, max_minutes or both")
        for name in ("max_steps", "max_minutes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"schedule.{name} must be positive, got {value}")
        _at_least(self, "warmup_steps", 0)
        if not 0 <= self.decay_fraction <= 1:
            raise ValueError(f"schedule.decay_fraction must be in [0, 1], got {self.decay_fraction}")


@dataclass(kw_only=True, slots=True)
class RunSection:
    """[run]"""

    output: Path
    device: str = "auto"
    precision: str = "bf16"
    """bf16 and fp16 are used on CUDA only; there are fp32 weights whatever it is, and fp16 scales its loss."""
    compile: bool = False
    """torch.compile for layers, hybrid units and token losses: a minute or two, then shorter steps on a GPU."""
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 1_000
    """Steps between checkpoints."""
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.output == Path():
            raise ValueError("run.output must name a folder of the run's own, got the working directory")
        if self.precision not in PRECISIONS:
            raise ValueError(f"run.precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.device not in DEVICES:
            raise ValueError(f"run.device must be one of {', '.join(DEVICES)}, got {self.device!r}")
        _at_least(self, "log_every", 1)
        _at_least(self, "checkpoint_every", 1)


@dataclass(kw_only=True, slots=True)
class Recipe:
    """A whole run."""

    model: ModelSection
    data: DataSection
    batch: BatchSection
    mixture: MixtureSection
    schedule: ScheduleSection
    run: RunSection
    long: LongSection = field(default_factory=LongSection)
    objectives: ObjectivesSection = field(default_factory=ObjectivesSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    parallel: ParallelSection = field(default_factory=ParallelSection)
    memory: MemorySection = field(default_factory=MemorySection)

    def __post_init__(self) -> None:
        parallel = self.parallel
        if self.optimizer.kind == "muon" and (parallel.zero or parallel.tensor > 1 or parallel.pipeline > 1):
            raise ValueError(
                'optimizer.kind = "muon" needs whole matrices on every process, but the recipe has parallel.zero = '
                f"{parallel.zero}, tensor = {parallel.tensor}, pipeline = {parallel.pipeline}: choose "
                'optimizer.kind = "adamw", or divide nothing but data and sequence'
            )
        if self.memory.offload_optimizer and not parallel.zero:
            raise ValueError("memory.offload_optimizer is ZeRO's: choose parallel.zero = 1, 2 or 3 with it")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for provenance."""
        return {
            section: {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
            for section, values in asdict(self).items()
        }


def load_recipe(path: Path) -> Recipe:
    """Read a recipe; relative paths in it count from the working directory.

    Raises ValueError naming the file and the key that is unknown, missing or wrong.
    """
    if not path.is_file():
        raise ValueError(f"there is no recipe {path}: name a TOML file, as those in training/recipes are")
    try:
        return parse_recipe(tomllib.loads(path.read_text(encoding="utf-8")))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: it is no UTF-8 text: name a recipe, as those in training/recipes are") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: it is not TOML ({error}): name a recipe, as those in training/recipes are") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_recipe(values: dict[str, Any]) -> Recipe:
    """A recipe from nested tables; ValueError for unknown, missing or wrong keys."""
    return from_table(Recipe, values)


def _at_least(section: Any, name: str, smallest: int) -> None:
    value = getattr(section, name)
    if value < smallest:
        table = type(section).__name__.removesuffix("Section").lower()
        raise ValueError(f"{table}.{name} must be at least {smallest}, got {value}")
