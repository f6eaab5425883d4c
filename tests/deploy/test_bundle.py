"""Writing bundles: whole or absent, never over something else, and refused where a part does not fit."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from deploy import replacement
from deploy.bundle import BundleContents, read_special_tokens, write_bundle
from deploy.graphs.builder import GraphBuilder
from deploy.model_card import render_card
from deploy.triton.manifest import BundleError, CrfScores, Limits, load_manifest

CONFIG = {
    "vocab_size": 32_000,
    "d_model": 64,
    "num_heads": 4,
    "encoder_layers": 2,
    "encoder_ffn": 128,
    "hybrid_units": 2,
    "decoder_layers": 2,
    "decoder_ffn": 96,
    "pointer_layers": 1,
    "recurrent_block": 16,
    "recurrent_halo": 4,
}


@pytest.fixture
def contents() -> BundleContents:
    """A bundle of one small graph."""
    builder = GraphBuilder(name="router", weights={"w": np.eye(64, dtype=np.float32)}, opset=18, fusion=False)
    x = builder.input("x", TensorProto.FLOAT, ["batch", 64])
    builder.output("y", builder.matmul(x, builder.weight("w")), TensorProto.FLOAT, ["batch", 64])
    return BundleContents(
        name="test",
        preset="nano",
        precision="fp32",
        opset=18,
        config=CONFIG,
        parameters=4096,
        models={"router": builder.build()},
        crf=CrfScores(start=(0.0,) * 3, transition=((0.0,) * 3,) * 3, end=(0.0,) * 3),
        limits=Limits(),
        license="CC-BY-NC-SA-4.0",
        provenance={"sources": [{"name": "Poems", "license": "public domain"}], "seed": 1},
        evaluation={"squad": {"f1": 61.234567, "exact match": 49.5}},
    )


def test_a_written_bundle_verifies(contents: BundleContents, tokenizer_folder: Path, tmp_path: Path) -> None:
    written = write_bundle(contents, tokenizer_folder, tmp_path / "bundle")
    assert load_manifest(tmp_path / "bundle") == written
    listed = {*written.files, "manifest.json"}
    found = {path.relative_to(tmp_path / "bundle").as_posix() for path in (tmp_path / "bundle").rglob("*.*")}
    assert found == listed
    assert written.special_tokens["<summary>"] == 7


def test_a_bundle_is_readable_by_others(contents: BundleContents, tokenizer_folder: Path, tmp_path: Path) -> None:
    """The server runs as another user than the one who exported."""
    write_bundle(contents, tokenizer_folder, tmp_path / "bundle")
    assert (tmp_path / "bundle").stat().st_mode & 0o055 == 0o055


def test_a_bundle_is_not_replaced_silently(contents: BundleContents, tokenizer_folder: Path, tmp_path: Path) -> None:
    write_bundle(contents, tokenizer_folder, tmp_path / "bundle")
    before = (tmp_path / "bundle/manifest.json").read_bytes()
    with pytest.raises(ValueError, match="already holds a bundle"):
        write_bundle(replace(contents, name="other"), tokenizer_folder, tmp_path / "bundle")
    assert (tmp_path / "bundle/manifest.json").read_bytes() == before


def test_a_bundle_is_replaced_when_asked(contents: BundleContents, tokenizer_folder: Path, tmp_path: Path) -> None:
    write_bundle(contents, tokenizer_folder, tmp_path / "bundle")
    write_bundle(replace(contents, name="other"), tokenizer_folder, tmp_path / "bundle", overwrite=True)
    assert load_manifest(tmp_path / "bundle").name == "other"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


WITHOUT_EXCHANGE = [pytest.param(False, id="names exchanged"), pytest.param(True, id="renamed twice")]


@pytest.mark.parametrize("renamed_twice", WITHOUT_EXCHANGE)
def test_an_old_bundle_outlives_a_replacement_that_fails(
    contents: BundleContents,
    tokenizer_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    renamed_twice: bool,
) -> None:
    bundle = tmp_path / "bundle"
    write_bundle(contents, tokenizer_folder, bundle)
    rename, renamed = os.rename, []

    def fail_once(source: Path, target: Path) -> None:
        renamed.append(target)
        if len(renamed) == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_once)
    if renamed_twice:
        monkeypatch.setattr(replacement, "_exchange", unsupported)
        with pytest.raises(OSError, match="Input/output error"):
            write_bundle(replace(contents, name="other"), tokenizer_folder, bundle, overwrite=True)
    else:
        write_bundle(replace(contents, name="other"), tokenizer_folder, bundle, overwrite=True)
    assert load_manifest(bundle).name == ("test" if renamed_twice else "other")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def unsupported(*_: object) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")


KILLED_BETWEEN_RENAMES = """
import errno, os, signal, sys
from pathlib import Path
from deploy import replacement

def unsupported(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")

replacement._exchange = unsupported
rename = os.rename
os.rename = lambda *names: (rename(*names), os.kill(os.getpid(), signal.SIGKILL))
target = Path(sys.argv[1])
with replacement.staging_beside(target) as staging:
    replacement.put_in_place(staging, target)
"""


@pytest.fixture
def interrupted(contents: BundleContents, tokenizer_folder: Path, tmp_path: Path) -> Path:
    """A bundle whose replacement was killed when the old one had gone, and the new one had not come."""
    bundle = tmp_path / "bundle"
    write_bundle(contents, tokenizer_folder, bundle)
    killed = subprocess.run([sys.executable, "-c", KILLED_BETWEEN_RENAMES, str(bundle)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not bundle.exists()
    return bundle


def test_loading_says_where_an_interrupted_replacement_left_the_old_bundle(interrupted: Path) -> None:
    with pytest.raises(BundleError, match=r"interrupted, and the bundle that stood there is now (\S+): move") as caught:
        load_manifest(interrupted)
    aside = Path(str(caught.value).split("is now ")[1].removesuffix(": move it back"))
    aside.rename(interrupted)
    assert load_manifest(interrupted).name == "test"


def test_the_next_write_puts_an_interrupted_bundle_back_before_anything_else(
    contents: BundleContents, tokenizer_folder: Path, interrupted: Path
) -> None:
    with pytest.raises(ValueError, match="already holds a bundle"):
        write_bundle(replace(contents, name="other"), tokenizer_folder, interrupted)
    assert load_manifest(interrupted).name == "test"
    write_bundle(replace(contents, name="other"), tokenizer_folder, interrupted, overwrite=True)
    assert load_manifest(interrupted).name == "other"
    assert [path.name for path in interrupted.parent.iterdir()] == ["bundle"]


def test_a_neighbour_of_a_similar_name_is_left_alone(
    contents: BundleContents, tokenizer_folder: Path, interrupted: Path
) -> None:
    write_bundle(contents, tokenizer_folder, interrupted.with_name("bun"))
    write_bundle(contents, tokenizer_folder, interrupted.with_name("bundle-2"))
    with pytest.raises(BundleError, match="interrupted"):
        load_manifest(interrupted)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_bundle_is_never_replaced(
    contents: BundleContents, tokenizer_folder: Path, tmp_path: Path, overwrite: bool
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.tex").write_text("precious")
    with pytest.raises(ValueError, match="is no bundle"):
        write_bundle(contents, tokenizer_folder, tmp_path / "thesis", overwrite=overwrite)
    assert (tmp_path / "thesis/chapter1.tex").read_text() == "precious"


def test_a_failed_export_leaves_nothing(contents: BundleContents, tokenizer_folder: Path, tmp_path: Path) -> None:
    broken = replace(contents, precision="fp8")
    with pytest.raises(BundleError, match="precision must be"):
        write_bundle(broken, tokenizer_folder, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tokenizer_is_named(contents: BundleContents, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json does not exist"):
        write_bundle(contents, tmp_path, tmp_path / "bundle")


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tokenizer_folder: Path) -> None:
    with pytest.raises(ValueError, match="ids up to 31999, the model's vocabulary ends at 999"):
        read_special_tokens(tokenizer_folder, 1000)


def test_a_tokenizer_with_other_special_tokens_is_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")
    path = tmp_path / "tokenizer/tokenizer.json"
    path.write_text(path.read_text().replace('"<summary>"', '"<abstract>"'))
    with pytest.raises(ValueError, match="<summary>=None"):
        read_special_tokens(tmp_path / "tokenizer", 32_000)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"added_tokens": [1]}'])
def test_what_is_no_tokenizer_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        read_special_tokens(tmp_path, 32_000)


def test_transformers_loads_the_tokenizer_of_a_bundle(nano_bundle: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(nano_bundle))
    assert tokenizer.decode(tokenizer("The river rises.", add_special_tokens=False)["input_ids"]) == "The river rises."
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)


def test_the_card_states_licence_sources_and_figures(contents: BundleContents) -> None:
    card = render_card(contents)
    assert "license: cc-by-nc-sa-4.0" in card
    assert "| Poems | public domain |" in card
    assert "| f1 | 61.23 |" in card
    assert "| parameters | 4,096 |" in card


def test_a_damaged_shard_is_found_before_anything_is_loaded(nano_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(nano_bundle, tmp_path / "bundle")
    shard = tmp_path / "bundle/graphs/weights-000.bin"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(bytes(content))
    with pytest.raises(BundleError, match=r"weights-000\.bin differs"):
        load_manifest(tmp_path / "bundle")


def test_a_graph_exchanged_between_bundles_is_found(nano_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(nano_bundle, tmp_path / "bundle")
    shutil.copyfile(nano_bundle / "graphs/router.onnx", tmp_path / "bundle/graphs/qa.onnx")
    with pytest.raises(BundleError, match=r"qa\.onnx has"):
        load_manifest(tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle/manifest.json").read_text())
    assert manifest["files"]["graphs/qa.onnx"] != manifest["files"]["graphs/router.onnx"]
