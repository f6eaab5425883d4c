"""The manifest reader: what it accepts, and what each damaged bundle is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.triton.manifest import BundleError, load_manifest, record_file

Fields = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one graph, one shard and a manifest that describes them."""
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs/router.onnx").write_bytes(b"graph")
    (tmp_path / "graphs/weights-000.bin").write_bytes(b"weights")
    (tmp_path / "tokenizer.json").write_text("{}")
    names = ["graphs/router.onnx", "graphs/weights-000.bin", "tokenizer.json"]
    write(
        tmp_path,
        {
            "schema_version": 1,
            "name": "test",
            "preset": "nano",
            "precision": "fp32",
            "opset": 18,
            "config": {"vocab_size": 32000},
            "graphs": {"router": "graphs/router.onnx"},
            "weights": {"router": ["graphs/weights-000.bin"]},
            "special_tokens": {"<pad>": 0},
            "limits": {"max_source_tokens": 100},
            "crf": {"start": [0.0] * 3, "transition": [[0.0] * 3] * 3, "end": [0.0] * 3},
            "license": "Apache-2.0",
            "provenance": {},
            "evaluation": {},
            "quantization": {},
            "files": {name: as_fields(tmp_path / name) for name in names},
        },
    )
    return tmp_path


def as_fields(path: Path) -> Fields:
    record = record_file(path)
    return {"bytes": record.bytes, "sha256": record.sha256, "md5": record.md5}


def read(folder: Path) -> Fields:
    return json.loads((folder / "manifest.json").read_text())


def write(folder: Path, fields: Fields) -> None:
    (folder / "manifest.json").write_text(json.dumps(fields))


def test_a_whole_bundle_is_read(folder: Path) -> None:
    manifest = load_manifest(folder)
    assert manifest.limits.max_source_tokens == 100
    assert manifest.files_of(["router"]) == ["graphs/router.onnx", "graphs/weights-000.bin"]
    assert json.loads(manifest.to_json())["files"] == read(folder)["files"]


def test_a_manifest_survives_writing_and_reading(folder: Path) -> None:
    manifest = load_manifest(folder)
    (folder / "manifest.json").write_text(manifest.to_json())
    assert load_manifest(folder) == manifest


@pytest.mark.parametrize("name", ["graphs/router.onnx", "graphs/weights-000.bin", "tokenizer.json"])
def test_a_changed_byte_is_found_and_named(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[0] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(BundleError, match=f"{name} differs"):
        load_manifest(folder)


def test_a_truncated_file_is_named_with_both_sizes(folder: Path) -> None:
    (folder / "graphs/weights-000.bin").write_bytes(b"weigh")
    with pytest.raises(BundleError, match=r"weights-000\.bin has 5 bytes, the manifest says 7"):
        load_manifest(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read"):
        load_manifest(folder)


def test_a_part_of_a_bundle_can_be_verified_alone(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert load_manifest(folder, graphs=["router"]).name == "test"


def test_verification_can_be_left_out(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("changed")
    assert load_manifest(folder, verify=False).name == "test"


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        load_manifest(tmp_path)


def test_an_unknown_graph_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(BundleError, match="no graph 'qa', only router"):
        load_manifest(folder).graph_file("qa")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version 2"),
        ({"precision": "fp8"}, "precision must be one of"),
        ({"opset": "18"}, "opset must be int"),
        ({"nonsense": 1}, "unknown fields: nonsense"),
        ({"limits": {"max_source_tokens": 0}}, "limits.max_source_tokens must be"),
        ({"limits": {"max_sauce_tokens": 1}}, "max_sauce_tokens"),
        ({"crf": {"start": [0.0], "transition": [], "end": []}}, "crf must hold"),
        ({"graphs": {"router": "graphs/absent.onnx"}}, "graphs/absent.onnx is used"),
        ({"weights": {}}, "must name the same graphs"),
        ({"graphs": {"router": "../router.onnx"}}, "must be a path inside"),
        ({"files": {"/etc/passwd": {"bytes": 0, "sha256": "0" * 64, "md5": "0" * 32}}}, "must be a path inside"),
        ({"files": {"a": {"bytes": 0, "sha256": "", "md5": ""}}}, "not a file record"),
    ],
)
def test_a_wrong_field_is_named(folder: Path, change: Fields, message: str) -> None:
    write(folder, read(folder) | change)
    with pytest.raises(BundleError, match=message):
        load_manifest(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "\ufeff{}"])
def test_a_manifest_that_is_not_an_object_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        load_manifest(folder)
