"""Checkpoints in shards: every process writes its part, and any layout reads what it needs.

    checkpoints/step-00000500/shard-00000.safetensors …   one a process
    checkpoints/step-00000500/manifest.json               progress, model, and every shard's size, digest and tensors
    checkpoints/latest                                    the name of the last whole one; written last

A tensor is one entry (the fp32 weight, or what the optimizer remembers) of a parameter under the whole network's name,
or of its tensor-parallel part; what processes repeat is written once. So a layout reads what another wrote: parts are
joined and cut again, and stages and ZeRO leave no trace. A folder gets its name, and `latest` its content, by renaming
after everything lies on the disk: a kill at any moment leaves the last one whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from training.digests import file_digest
from training.parallel.mesh import Mesh
from training.parallel.tensor import Cut

FOLDER, LATEST, MANIFEST = "checkpoints", "latest", "manifest.json"
UNFINISHED = ".unfinished"
KEPT = 2
"""Checkpoints that stay on disk: the last, and one to go back to should it be damaged."""
SEPARATOR = "|"
"""Between a parameter's name and its entry's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A file of one process."""

    name: str
    size: int
    """Bytes."""
    sha256: str
    tensor_rank: int
    """Which part of a divided parameter it holds."""
    tensors: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointManifest:
    """A checkpoint's table of contents."""

    step: int
    progress: dict[str, float]
    loss_scale: float
    model: dict[str, Any]
    """Dimensions of the network."""
    optimizer: str
    layout: str
    """That wrote it, in words."""
    tensor_size: int
    """Parts of a divided parameter."""
    cuts: dict[str, list[Any]]
    """Dimension and blocks of every divided parameter, the blocks as a number or a list of relative sizes."""
    shards: list[Shard]
    tokenizer: str = ""
    """SHA-256 of the tokenizer.json whose tokens the network learns; empty in checkpoints of before it was written."""

    def write(self, path: Path) -> None:
        """As JSON."""
        _write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> CheckpointManifest:
        """Raises ValueError where the file is missing or damaged."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**values, "shards": [Shard(**shard) for shard in values["shards"]]})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is missing or damaged: {error}; {_fix(path.parent)}") from error


def write_checkpoint(
    run: Path,
    mesh: Mesh,
    step: int,
    tensors: Callable[[], dict[str, Tensor]],
    manifest: Callable[[list[Shard]], CheckpointManifest],
) -> None:
    """Write a checkpoint of a step, and make it the latest; all processes call it. One that is there stays as it is.

    Args:
        run: the run's output folder.
        mesh: the processes.
        step: steps done.
        tensors: makes what this process writes.
        manifest: makes the table of contents from all shards.

    Raises:
        OSError: on every process, where one could not write, or diverged; the checkpoint before stays the latest.
    """
    root = run / FOLDER
    whole, unfinished = root / f"step-{step:08d}", root / f"step-{step:08d}{UNFINISHED}"
    if mesh.all_of(_latest_name(root) == whole.name)[0]:
        return
    if mesh.is_first:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    mesh.barrier()
    held = tensors()
    shard, fault = None, None
    if broken := next((name for name, each in held.items() if not each.isfinite().all()), None):
        fault = f"{broken} holds numbers that are not finite: lower the recipe's learning rates"
    else:
        try:
            shard = _write_shard(unfinished / f"shard-{mesh.rank:05d}.safetensors", held, mesh.tensor.rank)
        except (OSError, SafetensorError) as error:
            fault = f"{unfinished}: {error}"
    found = mesh.all_of((shard, fault))
    fault = next((fault for _, fault in found if fault), None)
    if fault is None and mesh.is_first:
        try:
            manifest([shard for shard, _ in found]).write(unfinished / MANIFEST)
            _publish(root, unfinished, whole)
        except OSError as error:
            fault = f"{unfinished}: {error}"
    fault = next((each for each in mesh.all_of(fault) if each), None)
    if fault is not None:
        if mesh.is_first:
            shutil.rmtree(unfinished, ignore_errors=True)
        last = _latest_name(root) or "none"
        raise OSError(f"the checkpoint of step {step} could not be written ({fault}); the last whole one: {last}")


def _write_shard(path: Path, tensors: dict[str, Tensor], tensor_rank: int) -> Shard:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    _to_disk(path)
    return Shard(
        name=path.name,
        size=path.stat().st_size,
        sha256=file_digest(path),
        tensor_rank=tensor_rank,
        tensors=sorted(tensors),
    )


def _publish(root: Path, unfinished: Path, whole: Path) -> None:
    """Give the folder its name and point `latest` to it; only then do older ones go."""
    _to_disk(unfinished)
    if whole.exists():  # the same step, written before a kill that came ahead of `latest`, or by a run started again
        shutil.rmtree(whole)
    unfinished.rename(whole)
    _to_disk(root)
    _write_text(root / (LATEST + UNFINISHED), whole.name + "\n")
    (root / (LATEST + UNFINISHED)).replace(root / LATEST)
    _to_disk(root)
    older = sorted(each for each in root.glob("step-*[0-9]") if each.name < whole.name)
    kept = {whole, *older[len(older) - (KEPT - 1) :]}  # neither unfinished ones nor those of steps that are taken again
    for folder in set(root.glob("step-*")) - kept:
        shutil.rmtree(folder, ignore_errors=True)


class Checkpoint:
    """The latest checkpoint of a run, for reading."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError where its manifest is damaged."""
        self.folder = folder
        self.manifest = CheckpointManifest.read(folder / MANIFEST)
        self.files: dict[str, dict[int, Path]] = {}
        for shard in self.manifest.shards:
            for key in shard.tensors:
                self.files.setdefault(key, {})[shard.tensor_rank] = folder / shard.name
        self.entries: dict[str, list[str]] = {}
        for key in self.files:
            name, entry = key.split(SEPARATOR)
            self.entries.setdefault(name, []).append(entry)
        self._open: dict[Path, Any] = {}

    @classmethod
    def latest(cls, run: Path) -> Checkpoint | None:
        """None where the run has none. Raises ValueError where `latest` names what is not there, or is damaged."""
        pointer, name = run / FOLDER / LATEST, _latest_name(run / FOLDER)
        if name is None:
            return None
        if not name.startswith("step-") or not (run / FOLDER / name).is_dir():
            raise ValueError(f"{pointer} names {name!r}, which is no checkpoint; {_fix(run / FOLDER / 'step-')}")
        return cls(run / FOLDER / name)

    def verify(self, mesh: Mesh) -> None:
        """Compare every shard's size and digest; the processes share the work.

        Raises ValueError, on all processes, naming the file that differs.
        """
        fault = None
        for number, shard in enumerate(self.manifest.shards):
            if number % mesh.layout.world_size == mesh.rank and (fault := self._fault(shard)):
                break
        if found := next((each for each in mesh.all_of(fault) if each), None):
            raise ValueError(f"{found}; {_fix(self.folder)}")

    def _fault(self, shard: Shard) -> str | None:
        path = self.folder / shard.name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != shard.size:
            return f"{path} has {path.stat().st_size} bytes, {shard.size} were written"
        return None if file_digest(path) == shard.sha256 else f"{path} is damaged: its SHA-256 is not the manifest's"

    def whole(self, name: str, entry: str) -> Tensor:
        """One entry of a parameter, from its parts."""
        files = self.files[name + SEPARATOR + entry]
        parts = [self._read(files[rank], name, entry) for rank in sorted(files)]
        cut = self._cut(name)
        return parts[0] if cut is None or parts[0].ndim == 0 else cut.whole(parts)

    def part(self, name: str, entry: str, cut: Cut | None, rank: int, size: int) -> Tensor:
        """What process `rank` of `size` holds of an entry, where parameters are cut as `cut` says."""
        if cut is not None and size == self.manifest.tensor_size:
            return self._read(self.files[name + SEPARATOR + entry][rank], name, entry)
        found = self.whole(name, entry)
        return found if cut is None or found.ndim == 0 else cut.part(found, rank, size)

    def _cut(self, name: str) -> Cut | None:
        found = self.manifest.cuts.get(name)
        if not found or self.manifest.tensor_size == 1:
            return None
        dimension, blocks = found
        return Cut(dimension, tuple(blocks) if isinstance(blocks, list) else blocks)

    def _read(self, path: Path, name: str, entry: str) -> Tensor:
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt")
        return self._open[path].get_tensor(name + SEPARATOR + entry)


class PartStates(Mapping[str, dict[str, Tensor]]):
    """A checkpoint as one process' parameters see it, read as they are asked for."""

    def __init__(self, checkpoint: Checkpoint, mesh: Mesh, cuts: Mapping[str, Cut]) -> None:
        self.checkpoint, self.mesh, self.cuts = checkpoint, mesh, cuts

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        ring = self.mesh.tensor
        entries = self.checkpoint.entries[name]
        return {
            entry: self.checkpoint.part(name, entry, self.cuts.get(name), ring.rank, ring.size) for entry in entries
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self.checkpoint.entries)

    def __len__(self) -> int:
        return len(self.checkpoint.entries)


def _latest_name(root: Path) -> str | None:
    """What `latest` says; None where there is none."""
    path = root / LATEST
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _fix(folder: Path) -> str:
    others = sorted(each.name for each in folder.parent.glob("step-*[0-9]") if each != folder)
    if others:
        return f"to go on from an older one, write {others[-1]} into {folder.parent / LATEST}"
    return f"there is no older one: remove {folder.parent} to begin anew"


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _to_disk(path)


def _to_disk(path: Path) -> None:
    """Wait until a file, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
