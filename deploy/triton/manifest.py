"""The bundle's manifest: what a folder of graphs, weights and tokenizer files promises, and whether it keeps it.

    bundle/
      manifest.json            this module reads it
      tokenizer.json …
      MODEL_CARD.md
      graphs/encoder.onnx …    one file a graph, without weights
      graphs/weights-000.bin … the weights of all graphs, every tensor stored once

Only the standard library is used: the gateway, the engine inside Triton and the repository generator all read
manifests, and only some of them have numpy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
ENGINE_PACKAGE = "trident_engine"
"""Where a model repository keeps its copy of this package: beside the part of the bundle that a model reads."""


class Precision(StrEnum):
    """How graphs can compute, or their weights be stored."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"


Value = TypeVar("Value")


class BundleError(ValueError):
    """A bundle that is incomplete, changed or not a bundle; the message names the file and the fix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """Size and digests of one file of the bundle."""

    bytes: int
    sha256: str
    md5: str

    def __post_init__(self) -> None:
        if self.bytes < 0 or len(self.sha256) != 64 or len(self.md5) != 32:
            raise BundleError(f"{MANIFEST_NAME}: not a file record: {asdict(self)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The largest request the bundle's graphs were built and tested for."""

    max_source_tokens: int = 2048
    """Tokens of one source sequence, task token included."""

    max_target_tokens: int = 512
    """Tokens of one generated sequence, start token included."""

    qa_window_tokens: int = 384
    """Tokens of one question answering window: task token, question, separator and context."""

    max_answer_tokens: int = 48
    """Longest answer span."""

    max_beams: int = 8
    max_batch_size: int = 32

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BundleError(f"{MANIFEST_NAME}: limits.{name} must be an integer of 1 or more, got {value!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CrfScores:
    """The extractive head's CRF parameters over the tags O=0, B=1, I=2."""

    start: tuple[float, ...]
    """[3], score of beginning with a tag."""

    transition: tuple[tuple[float, ...], ...]
    """[3][3], score of going from the first index to the second."""

    end: tuple[float, ...]
    """[3], score of ending with a tag."""

    def __post_init__(self) -> None:
        if [len(row) for row in (self.start, self.end, self.transition, *self.transition)] != [3] * 6:
            raise BundleError(f"{MANIFEST_NAME}: crf must hold start[3], transition[3][3] and end[3]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The contents of `manifest.json`. Paths are relative to the bundle's folder, with forward slashes."""

    name: str
    preset: str
    precision: str
    """fp32; fp16, which the graphs compute in; int8 or int4, of their weights alone. Scores are FP32 in any case."""

    opset: int
    config: Mapping[str, Any]
    """The fields of `HybridConfig`."""

    graphs: Mapping[str, str]
    """Graph name to file."""

    weights: Mapping[str, tuple[str, ...]]
    """Graph name to the weight shards it reads."""

    special_tokens: Mapping[str, int]
    limits: Limits
    crf: CrfScores
    license: str
    """SPDX expression of the weights' licence."""

    files: Mapping[str, FileRecord]
    """Every file of the bundle but the manifest itself."""

    provenance: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    quantization: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.precision not in list(Precision):
            raise BundleError(
                f"{MANIFEST_NAME}: precision must be one of {', '.join(Precision)}, got {self.precision!r}"
            )
        named = [*self.files, *self.graphs.values(), *(shard for shards in self.weights.values() for shard in shards)]
        for name in named:
            _check_relative(name)
            if name not in self.files:
                raise BundleError(f"{MANIFEST_NAME}: {name} is used by a graph, but has no digest under files")
        if self.weights.keys() != self.graphs.keys():
            raise BundleError(f"{MANIFEST_NAME}: graphs and weights must name the same graphs")

    def graph_file(self, name: str) -> str:
        """Relative path of the graph `name`. Raises BundleError where the bundle has no such graph."""
        if name not in self.graphs:
            raise BundleError(f"bundle {self.name!r} has no graph {name!r}, only {', '.join(sorted(self.graphs))}")
        return self.graphs[name]

    def files_of(self, graphs: Iterable[str]) -> list[str]:
        """Relative paths that the given graphs need: their own files and the weight shards they read."""
        needed: dict[str, None] = {}
        for name in graphs:
            needed[self.graph_file(name)] = None
            needed.update(dict.fromkeys(self.weights[name]))
        return list(needed)

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def load_manifest(folder: Path | str, *, verify: bool = True, graphs: Iterable[str] | None = None) -> Manifest:
    """Read and check `folder/manifest.json`.

    Args:
        folder: the bundle.
        verify: compare the size and both digests of every file.
        graphs: verify only what these graphs need; for a folder that holds a part of a bundle.

    Raises:
        BundleError: no manifest, a manifest of another schema, or a file that is missing or differs.
    """
    folder = Path(folder)
    path = folder / MANIFEST_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path} does not exist: {_why_absent(folder)}") from None
    except NotADirectoryError:
        raise BundleError(f"{folder} is a file: name the bundle's folder (`trident export` writes one)") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}): {fix_for(path)}") from None
    except ValueError as error:
        raise BundleError(f"{path} is not JSON ({error}): {fix_for(path)}") from None
    manifest = parse_manifest(data)
    if verify:
        verify_files(manifest, folder, manifest.files if graphs is None else manifest.files_of(graphs))
    return manifest


def parse_manifest(data: object) -> Manifest:
    """The manifest in decoded JSON. Raises BundleError where a field is missing or of the wrong type."""
    if not isinstance(data, dict):
        raise BundleError(f"{MANIFEST_NAME} must hold a JSON object, not {type(data).__name__}")
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{MANIFEST_NAME} has schema_version {version!r}, this program reads {SCHEMA_VERSION}: export it again"
        )
    unknown = data.keys() - {each.name for each in fields(Manifest)}
    if unknown:
        raise BundleError(f"{MANIFEST_NAME} has unknown fields: {', '.join(sorted(unknown))}")
    crf = _get(data, "crf", dict)
    try:
        return Manifest(
            schema_version=SCHEMA_VERSION,
            name=_get(data, "name", str),
            preset=_get(data, "preset", str),
            precision=_get(data, "precision", str),
            opset=_get(data, "opset", int),
            config=_get(data, "config", dict),
            graphs=_get(data, "graphs", dict),
            weights={name: tuple(shards) for name, shards in _get(data, "weights", dict).items()},
            special_tokens=_get(data, "special_tokens", dict),
            limits=Limits(**_get(data, "limits", dict)),
            crf=CrfScores(
                start=tuple(_get(crf, "start", list)),
                transition=tuple(tuple(row) for row in _get(crf, "transition", list)),
                end=tuple(_get(crf, "end", list)),
            ),
            license=_get(data, "license", str),
            files={name: FileRecord(**record) for name, record in _get(data, "files", dict).items()},
            provenance=_get(data, "provenance", dict),
            evaluation=_get(data, "evaluation", dict),
            quantization=_get(data, "quantization", dict),
        )
    except TypeError as error:
        raise BundleError(f"{MANIFEST_NAME}: {error}") from None


def verify_files(manifest: Manifest, folder: Path, names: Iterable[str]) -> None:
    """Compare the given files with their records. Raises BundleError naming the first that differs."""
    for name in names:
        path, expected = folder / name, manifest.files[name]
        try:
            found = record_file(path)
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror}): {fix_for(path)}") from None
        if found.bytes != expected.bytes:
            raise BundleError(f"{path} has {found.bytes} bytes, the manifest says {expected.bytes}: {fix_for(path)}")
        if found != expected:
            raise BundleError(f"{path} differs from the manifest's digest: {fix_for(path)}")


def fix_for(path: Path) -> str:
    """What to do about a damaged file of a bundle, or of the copy of it that a model repository holds."""
    if any((folder / ENGINE_PACKAGE).is_dir() for folder in (path.parent, path.parent.parent)):
        return "build the model repository again (trident repository build --overwrite)"
    return "fetch or export the bundle again"


def set_aside(folder: Path) -> Path:
    """Where what stood at `folder` waits while something new takes its place in two steps."""
    return folder.parent / f".{folder.name}.replaced"


def bundle_digest(folder: Path | str) -> str:
    """What names a bundle's exact contents: the SHA-256 of its manifest, which holds the digests of all its files.

    Two programs serve the same bundle if, and only if, they hold equal digests. Raises BundleError where there is none.
    """
    path = Path(folder) / MANIFEST_NAME
    try:
        return record_file(path).sha256
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}): {fix_for(path)}") from None


def record_file(path: Path) -> FileRecord:
    """Size and digests of a file, read once. Raises OSError where it cannot be read."""
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            sha256.update(chunk)
            md5.update(chunk)
            size += len(chunk)
    return FileRecord(bytes=size, sha256=sha256.hexdigest(), md5=md5.hexdigest())


def _why_absent(folder: Path) -> str:
    aside = set_aside(folder)
    if (aside / MANIFEST_NAME).is_file():
        return f"its replacement was interrupted, and the bundle that stood there is now {aside}: move it back"
    return f"{folder} is not a bundle (`trident export` writes one)"


def _get(data: Mapping[str, Any], name: str, kind: type[Value]) -> Value:
    value = data.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BundleError(f"{MANIFEST_NAME}: {name} must be {kind.__name__}, got {type(value).__name__}")
    return value


def _check_relative(name: str) -> None:
    """Refuse names that leave the bundle: a manifest may come from anywhere."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise BundleError(f"{MANIFEST_NAME}: {name!r} must be a path inside the bundle")
