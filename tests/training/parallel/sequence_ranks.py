"""What processes that compute a model together do and compare; a module of its own, for they import it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.configuration import HybridConfig
from model.cross_entropy import IGNORE
from model.network import HybridModel
from tests.training.parallel.ranks import Task
from training.config import ObjectivesSection
from training.data.batches import Batch
from training.objectives.losses import compute_losses
from training.parallel.halo import Halo
from training.parallel.link import Link, Work
from training.parallel.sequence import SequenceParallel, apply_sequence_parallel


def plain_model() -> HybridModel:
    """A nano network as training starts it, without dropout."""
    torch.manual_seed(0)
    return HybridModel(HybridConfig.from_preset("nano", dropout=0.0))


def spread_model(**overrides: Any) -> HybridModel:
    """A nano network without dropout, whose every part shows in its results."""
    torch.manual_seed(0)
    model = HybridModel(HybridConfig.from_preset("nano", dropout=0.0, **overrides))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("hybrid.mix", "extractive.crf")):
                parameter.normal_()
            elif "norm" not in name and "recurrence" not in name:
                parameter.mul_(3)
    return model


def made_batch(width: int, lengths: list[int], seed: int = 3) -> Batch:
    """Random rows, a third each to continue, to answer and to summarise; what lies behind a row is noise."""
    chance = torch.Generator().manual_seed(seed)
    rows = len(lengths)
    source = torch.randint(16, 32_000, (rows, width), generator=chance, dtype=torch.int32)
    where = torch.rand(rows, width // 4, generator=chance) * torch.tensor(lengths)[:, None]
    labels = torch.randint(16, 32_000, (rows, width // 4), generator=chance)
    labels[torch.rand(labels.shape, generator=chance) < 0.3] = IGNORE
    third = rows // 3
    asked = lengths[third : 2 * third]
    context = torch.tensor([[length // 4, length] for length in asked], dtype=torch.int32)
    answer = torch.tensor([[length // 2, min(length, length // 2 + 4)] for length in asked], dtype=torch.int32)
    answer[0] = -1
    summary = source[2 * third :, :21].long()
    summary[:, 11:] = torch.randint(16, 32_000, (rows - 2 * third, 10), generator=chance)
    summary[-1, 15:] = IGNORE
    continuation = torch.randint(16, 32_000, (third, 19), generator=chance)
    continuation[0, 5:] = IGNORE
    return Batch(
        source, torch.tensor(lengths, dtype=torch.int32), torch.arange(rows) % 3, where[:third].int(), labels[:third],
        continuation, context, answer, summary, sum(lengths),
    )  # fmt: skip


def own_slice(batch: Batch, group: dist.ProcessGroup | None = None) -> Batch:
    """A batch whose source is this rank's slice."""
    return batch._replace(source_BS=own_columns(batch.source_BS, group))


def own_columns(whole: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """This rank's slice of rows."""
    return whole.chunk(dist.get_world_size(group), dim=1)[dist.get_rank(group)]


def trained(model: HybridModel, batches: list[Batch], split: SequenceParallel | None = None) -> list[list[float]]:
    """Every objective's loss, and their sum, in one AdamW step a batch; of this rank's slices where they are split."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    history = []
    for batch in batches:
        losses = split.losses(own_slice(batch)) if split else compute_losses(model, batch)
        total = losses.weighted(ObjectivesSection())
        optimizer.zero_grad()
        total.backward()
        if split:
            average_gradients(model)
        optimizer.step()
        history.append([float(loss.detach()) for loss in (*losses.values(), total)])
    return history


def average_gradients(model: HybridModel) -> None:
    """As a data-parallel engine does over the sequence group."""
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()


def gradients_of(model: HybridModel, batch: Batch) -> dict[str, Tensor]:
    """Gradients of the weighted sum of all losses."""
    compute_losses(model, batch).weighted(ObjectivesSection()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


class WatchedLink(Link):
    """A link that notes how many elements each exchange sends, and how many exchanges were on their way at most."""

    def __init__(self, *, blocking: bool) -> None:
        super().__init__(None, blocking=blocking)
        self.sent: list[int] = []
        self.flying = self.most = 0

    def transmit(self, sent: Tensor, sizes: list[int] | None) -> tuple[Tensor, Work]:
        received, work = super().transmit(sent, sizes)
        self.sent.append(sent.numel())
        self.flying += 1
        self.most = max(self.most, self.flying)
        return received, _WatchedWork(self, work)


class _WatchedWork:
    def __init__(self, link: WatchedLink, work: Work) -> None:
        self.link, self.work, self.waited = link, work, False

    def wait(self) -> None:
        self.work.wait()
        self.link.flying -= not self.waited
        self.waited = True


def train_split(batches: list[Batch]) -> list[list[float]]:
    """A step a batch, over this process' group."""
    model = plain_model()
    return trained(model, batches, apply_sequence_parallel(model, None))


def split_gradients(batch: Batch, turns: int, overrides: dict[str, Any]) -> dict[str, Tensor]:
    """Averaged over this process' group; of one part, the losses are those of training on one device."""
    model = spread_model(**overrides)
    split, own = apply_sequence_parallel(model, None, turns=turns), own_slice(batch)
    losses = compute_losses(model, own) if turns == 1 else split.losses(own)
    losses.weighted(ObjectivesSection()).backward()
    average_gradients(model)
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def bf16_loss(batch: Batch) -> tuple[float, bool]:
    """The weighted loss under bf16 autocast, and whether every gradient is finite."""
    model = spread_model()
    split = apply_sequence_parallel(model, None)
    with torch.autocast("cpu", torch.bfloat16):
        loss = split.losses(own_slice(batch)).weighted(ObjectivesSection())
    loss.backward()
    found = [each.grad.isfinite().all() for each in model.parameters() if each.grad is not None]
    return float(loss.detach()), bool(torch.stack(found).all())


def results(model: HybridModel, source: Tensor, whole: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What the network's methods give for rows without padding; `source` may be a slice of `whole`."""
    lengths = torch.full((len(whole),), whole.shape[1])
    memory = model.encode(source)
    return {
        "memory": memory,
        "tasks": model.task_logits(memory),
        "emissions": model.emissions(memory),
        "generative": model.generative_logits(memory, None, target),
        "pointer": model.pointer_log_probs(memory, None, source, target),
        "masked": model(source, lengths),
    }


@torch.no_grad()
def split_results(whole: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Of this rank's slice."""
    model = spread_model()
    apply_sequence_parallel(model, None)
    return results(model, own_columns(whole), whole, target)


@torch.no_grad()
def layer_by_layer(model: HybridModel, source: Tensor, lengths: Tensor) -> Tensor:
    """The memory by calls of the modules, as a pipeline's stages make them."""
    positions = model.source_positions(lengths, source.shape[1])
    hidden = model.encoder.begin(model.embedding(source), lengths)
    for layer in model.encoder.layers:
        hidden = layer(hidden, positions)
    return model.hybrid(model.encoder.norm(hidden), lengths, positions)


def split_layer_by_layer(source: Tensor, lengths: Tensor) -> Tensor:
    """Of this rank's slice."""
    model = spread_model()
    apply_sequence_parallel(model, None)
    return layer_by_layer(model, own_columns(source), lengths)


def watched(batch: Batch, turns: int) -> tuple[list[int], int]:
    """Elements of each exchange of one step, and how many exchanges were on their way at most."""
    model, link = spread_model(), WatchedLink(blocking=turns == 1)
    split = apply_sequence_parallel(model, None, turns=turns, link=link)
    split.losses(own_slice(batch)).weighted(ObjectivesSection()).backward()
    assert link.flying == 0
    return link.sent, link.most


def halo_elements(rows: int, size: int, halo: int, width: int) -> int:
    """What a rank sends so that its neighbours can run their recurrences."""
    link = WatchedLink(blocking=False)
    Halo(link, torch.zeros(rows, size, width), halo).finish()
    return sum(link.sent)


def in_turn(tasks: dict[str, tuple[Task, tuple[Any, ...]]]) -> dict[str, Any]:
    """Several tasks in one set of processes, which are slow to start."""
    return {name: task(*arguments) for name, (task, arguments) in tasks.items()}
