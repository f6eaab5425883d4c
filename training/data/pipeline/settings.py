"""Settings of the data pipeline: one TOML file, or defaults that filter English and Chinese on two cores."""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from training.tables import from_table

EXECUTORS = ("local", "ray", "slurm")


@dataclass(kw_only=True, slots=True)
class ExecutorSettings:
    """[executor]: what runs the tasks. It never changes what they write."""

    kind: str = "local"
    workers: int = 2
    """Tasks at once."""
    memory_gb: int = 2
    """Ray and Slurm: memory reserved for a task."""
    ray_address: str = "auto"
    slurm_partition: str = ""
    slurm_time: str = "24:00:00"
    slurm_setup: str = ""
    """Shell command run in every job before the task, such as the activation of an environment."""

    def __post_init__(self) -> None:
        if self.kind not in EXECUTORS:
            raise ValueError(f"executor must be one of {', '.join(EXECUTORS)}, got {self.kind!r}")
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        if self.kind == "slurm" and not self.slurm_partition:
            raise ValueError("the slurm executor needs slurm_partition in [executor]")


@dataclass(kw_only=True, slots=True)
class FilterSettings:
    """[filter]: what stage 1 keeps."""

    languages: list[str] = field(default_factory=lambda: ["en", "zh"])
    """Languages kept, as ISO 639-1 codes; quality rules exist for en and zh."""
    shingle_words: int = 5
    """Words, or Chinese characters, in a row that are compared between documents."""
    buckets: int = 16
    hashes: int = 7
    """MinHash: documents sharing a part s of their shingles meet with chance 1 - (1 - s^hashes)^buckets."""
    abuse_words: int = 2
    """A document is abusive with this many listed words, if they are also `abuse_share` of its words."""
    abuse_share: float = 0.005

    def __post_init__(self) -> None:
        from training.data.pipeline.quality import QUALITY_LANGUAGES

        if unknown := sorted(set(self.languages) - set(QUALITY_LANGUAGES)):
            known = ", ".join(QUALITY_LANGUAGES)
            raise ValueError(f"there are no quality rules for language {unknown[0]!r}; known are {known}")
        for name in ("shingle_words", "buckets", "hashes", "abuse_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pivot:
    """A way through another language: two folders of transformers' sequence-to-sequence models."""

    language: str
    forward: str
    """From the corpus' language to the pivot."""
    backward: str


@dataclass(kw_only=True, slots=True)
class AugmentSettings:
    """[augment]: stage 2."""

    pivots: dict[str, Any] = field(default_factory=dict)
    """[augment.pivots.LANGUAGE] with forward and backward: folders or names of translation models."""
    language: str = "en"
    """What the models translate from; documents of other languages are left as they are."""
    batch_sentences: int = 32
    max_tokens: int = 256
    """Tokens of a translated sentence at most."""
    num_beams: int = 1
    device: str = "cpu"
    least_kept: float = 0.5
    """A back-translation needs this part of its original's words at least, and at most the reciprocal."""

    def __post_init__(self) -> None:
        for name in ("batch_sentences", "max_tokens", "num_beams"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.least_kept <= 1:
            raise ValueError(f"least_kept must be in (0, 1], got {self.least_kept}")

    @property
    def routes(self) -> list[Pivot]:
        """The configured pivots, by name."""
        found = []
        for language, models in sorted(self.pivots.items()):
            if not isinstance(models, dict):
                raise ValueError(f"[augment.pivots.{language}] must be a table of forward and backward, got {models!r}")
            found.append(from_table(Pivot, {"language": language, **models}))
        return found


@dataclass(kw_only=True, slots=True)
class SelectSettings:
    """[select]: stage 3."""

    features: int = 1 << 18
    """Hash buckets of words and pairs of Chinese characters."""
    contrast: float = 1.0
    """How much of what the seeds share with the whole corpus is taken off before documents are compared with them."""

    def __post_init__(self) -> None:
        if self.features < 1_024:
            raise ValueError(f"features must be at least 1024, got {self.features}")


@dataclass(kw_only=True, slots=True)
class DataSettings:
    """The whole file."""

    executor: ExecutorSettings = field(default_factory=ExecutorSettings)
    filter: FilterSettings = field(default_factory=FilterSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    select: SelectSettings = field(default_factory=SelectSettings)


def load_settings(path: Path | None, *, workers: int | None = None, executor: str | None = None) -> DataSettings:
    """Settings of a TOML file, or the defaults; the arguments go before the file.

    Raises ValueError naming the file and the key that is unknown or wrong.
    """
    values: dict[str, Any] = {}
    if path is not None:
        if not path.is_file():
            raise ValueError(f"there is no settings file {path}: name a TOML file, as docs/data.md has them")
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not TOML: it is no UTF-8 text") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    given = {"workers": workers, "kind": executor}
    values["executor"] = values.get("executor", {}) | {k: v for k, v in given.items() if v is not None}
    try:
        return from_table(DataSettings, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}" if path else str(error)) from error


def digest_of(*parts: Any) -> str:
    """SHA-256 of settings and plain values: two runs of one digest write the same."""
    plain = [asdict(part) if hasattr(part, "__dataclass_fields__") else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()
