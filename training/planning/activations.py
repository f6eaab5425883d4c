"""What each block's forward pass keeps for its backward pass.

Counted tensor by tensor along model/, for fused attention (which keeps no scores) and dropout masks of a byte an
element, as on a GPU. A storage that several operations keep counts once. Autocast computes norms in float32 and so
keeps their inputs in four bytes. Of a recurrence's inner state it counts what PyTorch's own implementation keeps, seven
values a unit and step: training/kernels/gru.py keeps five, and cuDNN does not document its reserve.

Under activation checkpointing a layer keeps its input alone; embeddings, heads and losses are not computed again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from training.planning.blocks import GRU_GATES, LSTM_GATES, NOTHING, Amount, window_tokens
from training.planning.workload import Network, Work

LOSS_CHUNK = 8_192
"""Targets whose logits exist at once: model/losses.py, which needs PyTorch to be read."""
KEPT_BY_RECURRENCE = 7
"""Values a unit and step; tests/training/planning/test_activations.py counts them."""
SPAN_TABLES = 1.5
"""Tables of all spans [B,S,L] that the CRF's score keeps, in floats: scores, and two masks of a byte."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Activations:
    """Kept by one block for one micro-batch, in elements."""

    values: Amount = NOTHING
    """Of the training precision."""
    floats: Amount = NOTHING
    """Of four bytes in any precision: inputs and statistics of norms, statistics of softmax, probabilities."""
    masks: float = 0.0
    """Of dropout, on every tensor rank."""
    copies: float = 0.0
    """Recurrent weights in one piece, whatever the batch."""
    input_values: float = 0.0
    """What is left under checkpointing."""
    units: int = 1
    """Parts that checkpointing computes again one after another."""
    logits: float = 0.0
    """Log softmax over the vocabulary, in float32, divided among tensor ranks."""

    def kept_bytes(self, tensor: int, sequence: int, value_bytes: int, *, mask_bytes: int = 1) -> float:
        """On one rank, without checkpointing and without logits."""
        scattered = self.values.per_rank(tensor) * value_bytes + self.floats.per_rank(tensor) * 4
        return (scattered + self.masks * mask_bytes) / sequence + self.copies * value_bytes

    def checkpoint_bytes(self, sequence: int, stream_bytes: int) -> float:
        """On one rank, under checkpointing; `stream_bytes` is the size of a hidden state's element."""
        return self.input_values / sequence * stream_bytes

    def logits_bytes(self, tensor: int, sequence: int) -> float:
        """On one rank; the loss is not computed again under checkpointing."""
        return self.logits * 4 / tensor / sequence


@lru_cache(maxsize=4096)
def block_activations(config: Network, work: Work, kind: str) -> Activations:
    """What a block of a kind keeps for some work."""
    d, heads, sources = config.d_model, config.num_heads, work.rows * work.source_tokens
    written, summed = work.written_rows * work.target_tokens, work.summed_rows * work.summary_tokens
    match kind:
        case "embedding":
            return _embedding(sources, d)
        case "encoder layer":
            # x, norm(x), then the same before the feed-forward network; queries, keys, values, the first two turned,
            # their mixture.
            inner = 6 * d + 2 * config.encoder_ffn
            return Activations(
                values=Amount(sources * inner, sources * 2 * d),
                floats=Amount(sources * heads, sources * (2 * d + 4)),
                masks=sources * 2 * d,
                input_values=sources * d,
            )
        case "hybrid layer":
            return _hybrid(config, work)
        case "masked head":
            # Gathered states, their transform, its norm.
            states = Activations(values=Amount(0, work.guesses * 2 * d), floats=Amount(0, work.guesses * (d + 2)))
            return _with_logits(config, states, work.guesses)
        case "span head":
            return _span_head(config, work)
        case "router":
            return Activations(values=Amount(0, work.rows * 3 * d))
        case "writer embedding":
            return _embedding(written, d)
        case "pointer embedding":
            return _embedding(summed, d)
        case "writer layer":
            return _decoder_layer(config, written, work.written_rows * work.source_tokens)
        case "pointer layer":
            return _decoder_layer(config, summed, work.summed_rows * work.source_tokens)
        case "writer head":
            return _with_logits(config, _normed(written, d), written)
        case "pointer head":
            return _pointer_head(config, work)
    raise AssertionError(kind)


def memory_values(config: Network, work: Work) -> float:
    """Elements of the encoder's result, which every head and every decoder layer reads."""
    return work.rows * work.source_tokens * config.d_model


def transient_logits(config: Network, targets: float) -> tuple[float, float]:
    """Elements of one chunk of logits while their loss is computed, in training precision and in float32.

    Forward: logits, their float copy, its log softmax. Backward: the log softmax, its gradient, that in training
    precision. The first is the larger one by nothing: both are one of precision, two of float32.
    """
    chunk = min(targets, LOSS_CHUNK) * config.vocab_size
    return chunk, 2 * chunk


def _embedding(tokens: float, width: int) -> Activations:
    """Embedded tokens, the gate's value, dropout."""
    return Activations(values=Amount(0, tokens * (width + 1)), masks=tokens * width)


def _normed(tokens: float, width: int) -> Activations:
    """A LayerNorm whose result is kept too."""
    return Activations(values=Amount(0, tokens * width), floats=Amount(0, tokens * (width + 2)))


def _with_logits(config: Network, states: Activations, targets: float) -> Activations:
    """States and, where they come in one chunk, the log softmax of their logits; more chunks are computed again."""
    kept = targets * config.vocab_size if targets <= LOSS_CHUNK else 0.0
    return replace(states, logits=kept)


def _hybrid(config: Network, work: Work) -> Activations:
    d, units, tokens = config.d_model, config.hybrid_units, work.rows * work.source_tokens
    recurrence = _recurrence(config, work.rows, work.source_tokens, GRU_GATES)
    # A unit: queries, keys, values, the first two turned, their mixture; the sum before its norm and the norm's result.
    return Activations(
        # Before the units: the encoder's last norm. Behind them: the memory itself.
        values=Amount(units * 6 * d * tokens, (units + 2) * d * tokens + units * recurrence.values.whole),
        floats=Amount(units * tokens * config.num_heads, (units + 1) * (d + 2) * tokens),
        masks=units * d * tokens,
        copies=units * recurrence.copies,
        # The last norm's input and result, the units' results, the memory.
        input_values=(units + 3) * d * tokens,
        units=units,
    )


def _span_head(config: Network, work: Work) -> Activations:
    d, tokens = config.d_model, work.asked_rows * work.source_tokens
    recurrence = _recurrence(config, work.asked_rows, work.source_tokens, LSTM_GATES)
    longest = min(config.max_answer_tokens, work.source_tokens)
    windowed = window_tokens(config, work.source_tokens) > work.source_tokens
    return Activations(
        # Its norm's input and result; a row of one block is read where it lies in the memory, not copied to a window.
        values=Amount(0, recurrence.values.whole + (1 if windowed else 0) * d * tokens),
        floats=Amount(0, tokens * (d + 2 + SPAN_TABLES * longest)),
        masks=d * tokens,
        copies=recurrence.copies,
    )


def _recurrence(config: Network, rows: float, size: int, gates: int) -> Activations:
    """Both directions: the windows they read, their inner states, the weights."""
    d, units = config.d_model, config.d_model // 2
    tokens = 2 * rows * window_tokens(config, size)
    weights = 2 * gates * units * (d + units + 2)
    return Activations(values=Amount(0, tokens * (d + KEPT_BY_RECURRENCE * units)), copies=weights)


def _decoder_layer(config: Network, targets: float, sources: float) -> Activations:
    """x and norm(x) before each of three sublayers; what both attentions and the feed-forward network keep."""
    d, kv = config.d_model, config.kv_width
    # Own queries, keys, values and their mixture; the queries to the memory and their mixture; the network's two.
    own = 2 * d + 2 * kv + 2 * d + 2 * config.decoder_ffn
    # Queries to the memory are laid out by groups: a copy, where heads share keys.
    own += d if kv < d else 0
    return Activations(
        values=Amount(targets * own + sources * 2 * kv, targets * 3 * d),
        floats=Amount(targets * 2 * config.num_heads, targets * (3 * d + 6)),
        masks=targets * 3 * d,
        input_values=targets * d,
    )


def _pointer_head(config: Network, work: Work) -> Activations:
    """The writer's head, and copying: queries, keys, and the softmax [B,T,S] with a mask of a byte."""
    d, targets = config.d_model, work.summed_rows * work.summary_tokens
    sources = work.summed_rows * work.source_tokens
    normed = _normed(targets, d)
    copying = Amount(0, targets * d + sources * d)
    tables = Amount(0, 1.25 * targets * work.source_tokens)
    states = Activations(values=normed.values + copying, floats=normed.floats + tables)
    return _with_logits(config, states, targets)
