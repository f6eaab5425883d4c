"""A pipeline's stages: which layers stand on which, and what each computes.

The network is one line of units, in the order in which they are computed:

    source · encoder 0 … · memory · generative 0 … · written · pointer 0 … · summed
    │                     │                         │                        └ loss of summaries
    embed the source      hybrid layer; losses of   └ loss of continuations
                          masked tokens, answers, router

Every process builds the batch itself, so only hidden states travel: the encoder's up to the memory; the memory and a
decoder's state behind it. A stage keeps what its units own, under the whole network's names. The embedding belongs to
every stage that reads or writes tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.configuration import HybridConfig
from model.generative import Decoder
from model.losses import shift_right
from model.network import HybridModel
from training.config import Recipe
from training.data.batches import Batch
from training.objectives.losses import NAMES, Losses, compute_losses, losses_at
from training.objectives.micro_batches import MicroBatch
from training.objectives.objective import MEMORY, SUMMED, UNITS, WRITTEN, Read, rows_of
from training.parallel.sequence import SequenceParallel

RECURRENCE_WEIGHT = 4.0
"""A recurrence's multiplications against a matrix product's: small ones in a row (docs/decisions/0003 has times)."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One step of the network."""

    kind: str
    index: int = 0

    @property
    def tokens_pass(self) -> bool:
        """Whether it reads or writes tokens, and needs the embedding."""
        return self.kind in ("source", *UNITS) or (self.kind in DECODERS and self.index == 0)


DECODERS = ("generative", "pointer")
DECODER_OF = {WRITTEN: "generative", SUMMED: "pointer"}
MEMORY_PARTS = ("encoder.norm", "hybrid", "router", "lm_head", "extractive")
SUMMED_PARTS = ("pointer.norm", "pointer.copy_query", "pointer.copy_key", "pointer.gate")


def units_of(config: HybridConfig) -> list[Unit]:
    """All units, in order."""
    return [
        Unit("source"),
        *(Unit("encoder", index) for index in range(config.encoder_layers)),
        Unit(MEMORY),
        *(Unit("generative", index) for index in range(config.decoder_layers)),
        Unit(WRITTEN),
        *(Unit("pointer", index) for index in range(config.pointer_layers)),
        Unit(SUMMED),
    ]


def owned_parts(unit: Unit) -> tuple[str, ...]:
    """Names of the modules whose parameters a unit needs."""
    shared = ("embedding",) if unit.tokens_pass else ()
    own: tuple[str, ...] = {
        "source": ("encoder.positions",),
        "encoder": (f"encoder.layers.{unit.index}",),
        MEMORY: MEMORY_PARTS,
        WRITTEN: ("generative.norm",),
        SUMMED: SUMMED_PARTS,
    }.get(unit.kind, (f"{unit.kind}.layers.{unit.index}",))
    if unit.kind in DECODERS and unit.index == 0:
        own += (f"{unit.kind}.positions",)
    return shared + own


def costs_of(recipe: Recipe, config: HybridConfig) -> list[float]:
    """Multiplications of each unit on a batch of the recipe, forward, in the order of `units_of`."""
    width, sizes = config.d_model, recipe.batch
    source, target, summary = sizes.source_tokens, sizes.target_tokens, sizes.summary_tokens
    rows, written = sizes.rows, sizes.pretraining_rows + sizes.instruction_rows
    read, tokens = rows * source, {"generative": written * target, "pointer": sizes.summary_rows * summary}
    read_by = {"generative": written * source, "pointer": sizes.summary_rows * source}
    length = {"generative": target, "pointer": summary}
    vocabulary = config.vocab_size * width
    attention = read * (4 * width**2 + 2 * source * width)
    recurrence = RECURRENCE_WEIGHT * read * 3 * width**2
    masked = sizes.pretraining_rows * int(recipe.objectives.mask_fraction * source)
    costs = {
        "source": float(read * width),
        "encoder": attention + read * 2 * width * config.encoder_ffn,
        MEMORY: config.hybrid_units * (attention + recurrence)
        + masked * vocabulary
        + 4 / 3 * recurrence * sizes.qa_rows / rows,
        WRITTEN: float(tokens["generative"] * vocabulary),
        SUMMED: float(tokens["pointer"] * (vocabulary + 2 * source * width)),
    }
    for kind in DECODERS:
        costs[kind] = (
            tokens[kind] * (6 * width**2 + 2 * width * (length[kind] + source) + 2 * width * config.decoder_ffn)
            + read_by[kind] * 2 * width**2
        )
    return [costs[unit.kind] for unit in units_of(config)]


def keep_units(network: HybridModel, units: list[Unit]) -> None:
    """Drop all modules of a network that these units do not need."""
    kept = {name for unit in units for name in owned_parts(unit)}
    for unit in units_of(network.config):
        for name in owned_parts(unit):
            if name not in kept:
                network.set_submodule(name, nn.Identity())


class Stage(nn.Module):
    """What one stage computes: some units, or the whole network.

    Args:
        network: its parameters; those of other units are dropped.
        units: this stage's, consecutive.
    """

    sequence: SequenceParallel | None = None
    """Where processes share every row: what it takes to read a slice of them."""

    def __init__(self, network: HybridModel, units: list[Unit]) -> None:
        super().__init__()
        self.units = units
        self.is_whole = units == units_of(network.config)
        keep_units(network, units)
        self.network = network

    def forward(self, micro: MicroBatch, *received: Tensor) -> tuple[Tensor, ...]:
        """Losses [O] of the objectives that stand on this stage, 0 for the others, then what the next stage needs."""
        if self.is_whole and self.sequence:
            return (self.sequence.losses(micro.batch, micro.targets).stacked() / self.sequence.link.size,)
        if self.is_whole:
            return (compute_losses(self.network, micro.batch, micro.targets).stacked(),)
        states = _States(self, micro, received)
        for unit in self.units:
            states.run(unit)
        losses = states.losses.stacked()
        if self.sequence:
            # All processes that share a row have its whole losses, and what processes have is added up.
            losses = losses / self.sequence.link.size
        return (losses, *states.travelling(self.units[-1]))

    def received_shapes(self, batch: Batch) -> list[tuple[int, ...]]:
        """Shapes of what comes from the stage before."""
        return self._shapes_before(self.units[0], batch)

    def sent_shapes(self, batch: Batch) -> list[tuple[int, ...]]:
        """Shapes of what goes to the next stage."""
        units = units_of(self.network.config)
        following = units.index(self.units[-1]) + 1
        return self._shapes_before(units[following], batch) if following < len(units) else []

    def _shapes_before(self, unit: Unit, batch: Batch) -> list[tuple[int, ...]]:
        """What travels where a unit begins a stage."""
        width = self.network.config.d_model
        source = (*batch.source_BS.shape, width)
        written, summed = (self._decoded(labels) for labels in (batch.continuation_GT, batch.summary_UT))
        return {
            "source": [],
            "encoder": [source],
            MEMORY: [source],
            "generative": [source, written] if unit.index else [source],
            WRITTEN: [source, written],
            "pointer": [source, summed] if unit.index else [source],
            SUMMED: [source, summed],
        }[unit.kind]

    def _decoded(self, labels_BT: Tensor) -> tuple[int, ...]:
        """The shape of a decoder's states: of all rows, or of those of this process."""
        rows, tokens = labels_BT.shape
        if self.sequence:
            rows = -(-rows // self.sequence.link.size)
        return rows, tokens, self.network.config.d_model


class _States:
    """Hidden states on their way through a stage's units."""

    def __init__(self, stage: Stage, micro: MicroBatch, received: tuple[Tensor, ...]) -> None:
        self.network, self.sequence, first = stage.network, stage.sequence, stage.units[0]
        self.micro, self.batch = micro, micro.batch
        self.positions = self.network.source_positions(self.batch.lengths_B, self.batch.source_BS.shape[1])
        self.sources: dict[str, tuple[Tensor, Tensor | None]] = {}
        """What each decoder reads: memories of whole rows, and their mask."""
        self.losses = Losses(dict.fromkeys(NAMES, torch.zeros((), device=self.batch.source_BS.device)))
        self.hidden: Tensor | None = None
        self.memory_BSD: Tensor | None = None
        if first.kind in ("encoder", MEMORY):
            (self.hidden,) = received
        elif received:
            self.memory_BSD, *state = received
            self.hidden = state[0] if state else None

    def travelling(self, last: Unit) -> tuple[Tensor, ...]:
        """What the next stage needs behind a unit."""
        if last.kind == SUMMED:
            return ()
        return tuple(each for each in (self.memory_BSD, self.hidden) if each is not None)

    def run(self, unit: Unit) -> None:
        """One unit."""
        batch, network = self.batch, self.network
        if unit.kind == "source":
            self.hidden = network.encoder.begin(network.embedding(batch.source_BS), batch.lengths_B)
        elif unit.kind == "encoder":
            self.hidden = network.encoder.layers[unit.index](self.hidden, self.positions)
        elif unit.kind == MEMORY:
            assert self.hidden is not None
            self.memory_BSD = network.hybrid(network.encoder.norm(self.hidden), batch.lengths_B, self.positions)
            self.hidden = None
            self._add_losses(unit)
        elif unit.kind in DECODERS:
            self._decode(unit)
        else:
            self._finish(unit)

    def _decode(self, unit: Unit) -> None:
        """One layer of a decoder."""
        rows, labels = self._read_by(unit.kind)
        decoder: Decoder = self.network.decoder(unit.kind)
        if unit.kind not in self.sources:
            self.sources[unit.kind] = self._source(rows)
        if unit.index == 0:
            read = shift_right(self.network, labels)
            self.hidden = decoder.begin(self.network.embedding(self.sequence.own_rows(read) if self.sequence else read))
        self.hidden = decoder.layers[unit.index](self.hidden, *self.sources[unit.kind])

    def _source(self, rows: slice) -> tuple[Tensor, Tensor | None]:
        """Memories for a decoder, and their mask."""
        assert self.memory_BSD is not None
        if self.sequence:
            return self.sequence.own_source(self.memory_BSD[rows], self.batch.lengths_B[rows])
        mask = self.positions.mask
        return self.memory_BSD[rows], mask[rows] if mask is not None else None

    def _finish(self, unit: Unit) -> None:
        """A decoder's norm, and the losses that read its states."""
        assert self.hidden is not None
        kind = DECODER_OF[unit.kind]
        states = self.network.decoder(kind).norm(self.hidden)
        if self.sequence:
            states = self.sequence.all_rows(states, len(self._read_by(kind)[1]))
        self.hidden = None
        self._add_losses(unit, states)

    def _add_losses(self, unit: Unit, states: Tensor | None = None) -> None:
        """Those of the objectives that stand on a unit."""
        assert self.memory_BSD is not None
        read = Read(self.network, self.batch, self.memory_BSD, states)
        self.losses.update(losses_at(unit.kind, read, self.micro.targets))

    def _read_by(self, kind: str) -> tuple[slice, Tensor]:
        rows = rows_of(self.batch)
        return (
            (rows.written, self.batch.continuation_GT) if kind == "generative" else (rows.summed, self.batch.summary_UT)
        )
