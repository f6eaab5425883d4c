"""The network as a chain of blocks, each with its parameters and its multiply-adds: what a pipeline is cut from.

    embedding ─ encoder layer … ─ hybrid layer ─ masked head ─ span head ─ router
              ─ writer embedding ─ writer layer … ─ writer head ─ pointer embedding ─ pointer layer … ─ pointer head

"Writer" is the generative decoder. Tensor parallelism splits some of a block among its ranks (attention, feed-forward,
embedding and output layer) and repeats the rest (norms, recurrences, positions, small heads) on every rank; so every
amount has two halves.

FLOPs are those of matrix products, two for each multiply-add, in the forward pass; elementwise work is not counted.
Causal attention counts the half of the score matrix that is read. A recurrence counts the halo of its blocks, for that
is the network's definition. Key and value heads count as divided among tensor ranks also where those cannot share them
evenly, and training/parallel/tensor.py repeats the matrix they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from training.planning.workload import Network, Work

GRU_GATES, LSTM_GATES = 3, 4
TAGS, TASKS = 3, 3
BACKWARD = 2
"""A product's backward pass costs two of its size: one for the gradient of either factor."""


@dataclass(frozen=True, slots=True)
class Amount:
    """A quantity under tensor parallelism."""

    split: float = 0.0
    """Divided among the ranks."""
    whole: float = 0.0
    """Repeated on every rank."""

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.split + other.split, self.whole + other.whole)

    @property
    def total(self) -> float:
        """Over a single rank."""
        return self.split + self.whole

    def per_rank(self, tensor: int) -> float:
        """What one of `tensor` ranks has."""
        return self.split / tensor + self.whole


NOTHING = Amount()


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One link of the chain, for the work it was built with."""

    kind: str
    """embedding, encoder layer, …"""
    parameters: Amount
    flops: Amount
    """Forward, without recurrences."""
    recurrent_flops: float = 0.0
    """Forward, repeated on every tensor rank."""
    recurrent_steps: int = 0
    """Steps that follow one another in the forward pass; a step of a recurrence cannot start before the last ended."""
    ties_embedding: bool = False
    """Reads the embedding as output layer or look-up table: a pipeline stage with it needs a copy."""
    targets: float = 0.0
    """Tokens whose logits it computes."""

    @property
    def forward_flops(self) -> float:
        """Of one rank that has no peers."""
        return self.flops.total + self.recurrent_flops


def runs(stage: Sequence[Block]) -> list[tuple[Block, int]]:
    """Consecutive equal blocks once, and how many they are."""
    return [(block, len(list(equal))) for block, equal in groupby(stage)]


def build_blocks(config: Network, work: Work) -> list[Block]:
    """The chain of a network for some work."""
    d = config.d_model
    encoder = [_encoder_layer(config, work)] * config.encoder_layers
    writer = _decoder(
        config, work, "writer", config.decoder_layers, work.written_rows, work.target_tokens, closing=Amount(0, 2 * d)
    )
    summed = work.summed_rows * work.summary_tokens
    copying = Amount(
        0,
        _product(summed, d, d)
        + _product(work.summed_rows * work.source_tokens, d, d)
        + _product(summed, d, work.source_tokens)
        + _product(summed, d, 1),
    )
    pointer = _decoder(
        config,
        work,
        "pointer",
        config.pointer_layers,
        work.summed_rows,
        work.summary_tokens,
        closing=Amount(0, 2 * d + 2 * d * d + d + 1),
        closing_flops=copying,
    )
    return [_embedding(config, work), *encoder, _hybrid_layer(config, work), *_heads(config, work), *writer, *pointer]


def window_tokens(config: Network, size: int) -> int:
    """Tokens that one direction of a recurrence reads for a row of `size` tokens, halos included."""
    block = config.recurrent_block
    if block is None or size <= block:
        return size
    return -(-size // block) * (block + config.recurrent_halo)


def window_steps(config: Network, size: int) -> int:
    """Steps that follow one another in one direction."""
    block = config.recurrent_block
    return size if block is None or size <= block else block + config.recurrent_halo


def _product(rows: float, inner: float, columns: float) -> float:
    """FLOPs of [rows, inner] @ [inner, columns]."""
    return 2.0 * rows * inner * columns


def _mixing(rows: float, queries: float, keys: float, width: int) -> float:
    """FLOPs of scores and of weighted values."""
    return 2 * rows * _product(queries, width, keys)


def _embedding(config: Network, work: Work) -> Block:
    d = config.d_model
    return Block(
        kind="embedding",
        parameters=Amount(config.vocab_size * d, config.max_positions * d + d + 1),
        flops=Amount(0, _product(work.rows * work.source_tokens, d, 1)),
        ties_embedding=True,
    )


def _encoder_layer(config: Network, work: Work) -> Block:
    d, inner, tokens = config.d_model, config.encoder_ffn, work.rows * work.source_tokens
    flops = _product(tokens, d, 4 * d + 2 * inner) + _mixing(work.rows, work.source_tokens, work.source_tokens, d)
    return Block(
        kind="encoder layer",
        # The second Linear's bias is added once, behind the sum over ranks.
        parameters=Amount(4 * d * d + 2 * d * inner + inner, 4 * d + d),
        flops=Amount(flops, 0),
    )


def _hybrid_layer(config: Network, work: Work) -> Block:
    """All units, and the norm that ends the encoder."""
    d, units, tokens = config.d_model, config.hybrid_units, work.rows * work.source_tokens
    attention = _product(tokens, d, 4 * d) + _mixing(work.rows, work.source_tokens, work.source_tokens, d)
    return Block(
        kind="hybrid layer",
        parameters=Amount(units * 4 * d * d, units * (_recurrent_parameters(d, GRU_GATES) + 2 * d) + units + 2 * d),
        flops=Amount(units * attention, 0),
        recurrent_flops=units * _recurrent_flops(config, work.rows, work.source_tokens, GRU_GATES),
        recurrent_steps=units * 2 * window_steps(config, work.source_tokens),
    )


def _heads(config: Network, work: Work) -> list[Block]:
    d = config.d_model
    return [
        Block(
            kind="masked head",
            parameters=Amount(0, d * d + d + 2 * d),
            flops=Amount(_product(work.guesses, d, config.vocab_size), _product(work.guesses, d, d)),
            ties_embedding=True,
            targets=work.guesses,
        ),
        Block(
            kind="span head",
            parameters=Amount(0, _recurrent_parameters(d, LSTM_GATES) + 2 * d + TAGS * d + TAGS + TAGS * (TAGS + 2)),
            flops=Amount(0, _product(work.asked_rows * work.source_tokens, d, TAGS)),
            recurrent_flops=_recurrent_flops(config, work.asked_rows, work.source_tokens, LSTM_GATES),
            recurrent_steps=2 * window_steps(config, work.source_tokens) if work.asked_rows else 0,
        ),
        Block(
            kind="router",
            parameters=Amount(0, d * d + d + TASKS * d + TASKS),
            flops=Amount(0, _product(work.rows, d, d + TASKS)),
        ),
    ]


def _decoder(
    config: Network,
    work: Work,
    name: str,
    layers: int,
    rows: float,
    size: int,
    *,
    closing: Amount,
    closing_flops: Amount = NOTHING,
) -> list[Block]:
    """Embedding, layers and head of a decoder; `closing` is what its head has beside the tied output layer."""
    d, kv, inner, tokens = config.d_model, config.kv_width, config.decoder_ffn, rows * size
    own = _product(tokens, d, 2 * d + 2 * kv) + _mixing(rows, size, (size + 1) / 2, d)
    cross = _product(tokens, d, 2 * d) + _product(rows * work.source_tokens, d, 2 * kv)
    cross += _mixing(rows, size, work.source_tokens, d)
    layer = Block(
        kind=f"{name} layer",
        parameters=Amount(4 * d * d + 4 * d * kv + 2 * d * inner + inner, 6 * d + d),
        flops=Amount(own + cross + _product(tokens, d, 2 * inner), 0),
    )
    entry = Block(
        kind=f"{name} embedding",
        parameters=Amount(0, config.max_target_positions * d + d + 1),
        flops=Amount(0, _product(tokens, d, 1)),
        ties_embedding=True,
    )
    head = Block(
        kind=f"{name} head",
        parameters=closing,
        flops=Amount(_product(tokens, d, config.vocab_size), 0) + closing_flops,
        ties_embedding=True,
        targets=tokens,
    )
    return [entry, *[layer] * layers, head]


def _recurrent_parameters(width: int, gates: int) -> int:
    """Both directions of width D → D/2: input and state matrices, and a bias for each."""
    units = width // 2
    return 2 * gates * units * (width + units + 2)


def _recurrent_flops(config: Network, rows: float, size: int, gates: int) -> float:
    units = config.d_model // 2
    return 2 * _product(rows * window_tokens(config, size), config.d_model + units, gates * units)
