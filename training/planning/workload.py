"""What one pass through the network reads and writes: the numbers that every formula of the planner starts from."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """The fields of HybridConfig that prices depend on: values alone, so that results can be remembered by them."""

    vocab_size: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    encoder_layers: int
    encoder_ffn: int
    hybrid_units: int
    decoder_layers: int
    decoder_ffn: int
    pointer_layers: int
    recurrent_block: int | None
    recurrent_halo: int
    max_positions: int
    max_target_positions: int
    max_answer_tokens: int

    @classmethod
    def of(cls, config: Any) -> Network:
        """Of a HybridConfig; by its attributes, so that nothing here imports transformers."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})

    @property
    def kv_width(self) -> int:
        """Of the keys, and of the values, of a decoder's attention."""
        return self.d_model // self.num_heads * self.num_kv_heads

    @property
    def layers(self) -> int:
        """Encoder and decoder layers."""
        return self.encoder_layers + self.decoder_layers + self.pointer_layers


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Rows of one encoder pass, and which of them go on to which head; fractions of rows are means.

    Widths are the tensors' own: padding is computed like any token, and so it is counted.
    """

    rows: float
    """B: all rows; the router reads every one."""
    source_tokens: int
    """S"""
    written_rows: float
    """Rows that the generative decoder continues."""
    target_tokens: int
    """T of the generative decoder."""
    asked_rows: float = 0.0
    """Rows in which the span decoder looks for an answer."""
    summed_rows: float = 0.0
    """Rows that the pointer decoder sums up."""
    summary_tokens: int = 0
    """T of the pointer decoder."""
    guesses: float = 0.0
    """Masked positions whose logits are computed, in all rows together."""

    def __post_init__(self) -> None:
        if self.rows <= 0 or self.source_tokens < 1:
            raise ValueError(f"work needs rows and source tokens, got {self.rows} rows of {self.source_tokens}")
        for name in ("written_rows", "target_tokens", "asked_rows", "summed_rows", "summary_tokens", "guesses"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")

    @property
    def tokens(self) -> float:
        """Source and target tokens, as a recipe's batch and the log's tokens/s count them."""
        targets = self.written_rows * self.target_tokens + self.summed_rows * self.summary_tokens
        return self.rows * self.source_tokens + targets

    def of_rows(self, rows: float) -> Work:
        """The same mixture in another number of rows."""
        factor = rows / self.rows
        return replace(
            self,
            rows=rows,
            written_rows=self.written_rows * factor,
            asked_rows=self.asked_rows * factor,
            summed_rows=self.summed_rows * factor,
            guesses=self.guesses * factor,
        )


def mixed_work(rows: float, source_tokens: int, target_tokens: int) -> Work:
    """Rows in the shares of training/recipes/student.toml: of 224, 128 pretraining, 24 instructions, 48 questions and
    24 summaries; a quarter of a pretraining row's tokens is masked.

    Summaries are as wide as continuations here.
    """
    return Work(
        rows=rows,
        source_tokens=source_tokens,
        written_rows=rows * 152 / 224,
        target_tokens=target_tokens,
        asked_rows=rows * 48 / 224,
        summed_rows=rows * 24 / 224,
        summary_tokens=target_tokens,
        guesses=rows * 128 / 224 * source_tokens / 4,
    )


def written_work(rows: float, source_tokens: int, target_tokens: int) -> Work:
    """Rows that are all continued, as in the throughput benchmarks: no questions, summaries or masked tokens."""
    return Work(rows=rows, source_tokens=source_tokens, written_rows=rows, target_tokens=target_tokens)
