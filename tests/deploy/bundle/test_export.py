"""From checkpoints of every form to graphs and bundles, through the commands as users type them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from deploy import cli
from deploy.bundle.checkpoints import load_checkpoint
from deploy.bundle.export import export_bundle
from deploy.bundle.optimisation import optimize_file
from deploy.bundle.shapes import config_of_shapes
from deploy.commands.export import export
from deploy.parity.feeds import random_rows
from deploy.parity.samples import Sample, encode_samples, load_samples
from deploy.parity.torch_runner import TorchRunner
from deploy.triton.manifest import load_manifest
from deploy.triton.sessions import open_session
from model.configuration import PRESETS, HybridConfig
from model.network import HybridModel
from tests.forks import completed, script

ROOT = Path(__file__).parents[3]
SAMPLES = [
    Sample(task="generation", input="Once upon a time"),
    Sample(task="qa", input="When?", context="It was built in 1871, near the old mill."),
    Sample(task="summary", input="Anna: Did you return the books? Ben: Not yet."),
]


@pytest.fixture(scope="module")
def checkpoint(nano_model: HybridModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as save_pretrained writes it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    nano_model.save_pretrained(str(folder))
    return folder


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def assert_same_network(one: HybridModel, other: HybridModel) -> None:
    ids_BS, _ = random_rows(32_000, [20])
    assert np.array_equal(TorchRunner(one).lm_logits(ids_BS), TorchRunner(other).lm_logits(ids_BS))


def test_checkpoints_of_every_form_hold_the_same_network(
    nano_model: HybridModel, checkpoint: Path, tmp_path: Path
) -> None:
    state = nano_model.state_dict()
    torch.save(state, tmp_path / "bare.pt")
    torch.save({"model": state, "config": nano_model.config.to_dict(), "step": 3}, tmp_path / "full.pt")
    assert_same_network(load_checkpoint(checkpoint), nano_model)
    assert_same_network(load_checkpoint(checkpoint / "model.safetensors"), nano_model)
    assert_same_network(load_checkpoint(tmp_path / "bare.pt", "nano"), nano_model)
    assert_same_network(load_checkpoint(tmp_path / "full.pt"), nano_model)


def test_bare_weights_tell_their_preset_by_their_shapes(nano_model: HybridModel, tmp_path: Path) -> None:
    torch.save(nano_model.state_dict(), tmp_path / "bare.pt")
    found = load_checkpoint(tmp_path / "bare.pt")
    assert found.config.dimensions() == nano_model.config.dimensions()
    assert_same_network(found, nano_model)
    other = HybridConfig.from_preset("nano", vocab_size=500, max_positions=64, max_target_positions=32)
    torch.save(HybridModel(other).state_dict(), tmp_path / "other.pt")
    assert load_checkpoint(tmp_path / "other.pt").config.dimensions() == other.dimensions()


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_is_known_by_its_shapes(preset: str) -> None:
    with torch.device("meta"):
        weights = HybridModel(HybridConfig.from_preset(preset)).state_dict()
    assert config_of_shapes(weights, "model.pt").dimensions() == HybridConfig.from_preset(preset).dimensions()


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_bare_weights_of_before_grouped_heads_load(tmp_path: Path, name: str) -> None:
    """With as many key and value heads as heads, by their shapes alone and as a preset."""
    model = HybridModel(HybridConfig.from_preset("nano", num_kv_heads=4))
    path = tmp_path / name
    if path.suffix == ".pt":
        torch.save(model.state_dict(), path)
    else:
        model.save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").rename(path)
        (tmp_path / "config.json").unlink()
    for preset in (None, "nano"):
        loaded = load_checkpoint(path, preset)
        assert loaded.config.dimensions() == model.config.dimensions()


def test_bare_weights_of_no_preset_ask_for_a_configuration(tmp_path: Path) -> None:
    state = HybridModel(HybridConfig.from_preset("nano", encoder_layers=3)).state_dict()
    torch.save(state, tmp_path / "bare.pt")
    with pytest.raises(ValueError, match=r"no preset's \(.*encoder_layers=3.*\): put config.json .* --preset"):
        load_checkpoint(tmp_path / "bare.pt")


def test_tensors_of_something_else_are_no_network(tmp_path: Path) -> None:
    torch.save({"linear.weight": torch.zeros(3, 3)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt holds no weights of this network"):
        load_checkpoint(tmp_path / "model.pt")


def test_a_checkpoint_of_another_preset_is_refused(nano_model: HybridModel, tmp_path: Path) -> None:
    torch.save(nano_model.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="does not fit its configuration"):
        load_checkpoint(tmp_path / "bare.pt", "student")


def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_name(nano_model: HybridModel, tmp_path: Path) -> None:
    state = dict(nano_model.state_dict())
    lost = next(key for key in state if key.startswith("router."))
    del state[lost]
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=lost):
        load_checkpoint(tmp_path / "model.pt", "nano")


class Payload:
    """What a hostile .pt file would carry."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code ran",))


@pytest.mark.parametrize("content", [b"", b"PK not a zip", b"junk", bytes(range(256)), b"\x80\x02}q\x01.", None])
def test_what_is_no_checkpoint_is_refused_and_never_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    if content is None:
        torch.save(Payload(), tmp_path / "model.pt")
    else:
        (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.pt is not a \.pt file of tensors"):
        load_checkpoint(tmp_path / "model.pt", "nano")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["absent", "absent.pt", "absent.safetensors"])
def test_a_missing_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} does not exist"):
        load_checkpoint(tmp_path / name, "nano")


def test_the_script_writes_an_opset_15_graph_that_runs(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["--input_model", str(checkpoint), "--output_model", str(tmp_path / "model.onnx")]
    done = run("deploy/optimize_for_inference.py", *arguments, "--opset", "15", "--enable_fusion", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["opset"] == 15
    assert report["largest_difference"] < 1e-3
    assert report["operators"]["MultiHeadAttention"] == 4
    session = open_session(tmp_path / "model.onnx")
    logits = session.run(None, {"input_ids": np.full((2, 11), 20)})[0]
    assert logits.shape == (2, 11, 32_000)


def test_the_script_takes_bare_weights(nano_model: HybridModel, tmp_path: Path) -> None:
    torch.save(nano_model.state_dict(), tmp_path / "model.pt")
    arguments = ["--input_model", str(tmp_path / "model.pt"), "--output_model", str(tmp_path / "model.onnx")]
    done = completed(script, "deploy/optimize_for_inference.py", *arguments, "--opset", "15", "--enable_fusion")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.onnx").is_file()


def test_the_script_tells_junk_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"junk")
    arguments = ["--input_model", str(tmp_path / "model.pt"), "--output_model", str(tmp_path / "model.onnx")]
    done = completed(script, "deploy/optimize_for_inference.py", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'model.pt'} is not a .pt file of tensors")


def test_the_script_refuses_in_words_with_status_1(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["--input_model", str(checkpoint), "--output_model", str(tmp_path / "model.onnx")]
    arguments += ["--opset", "15", "--graph", "pointer_step", "--enable_fusion"]
    done = completed(script, "deploy/optimize_for_inference.py", *arguments)
    assert done.returncode == 1
    assert "ScatterElements(reduction=add)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("graph", ["router", "qa", "encoder", "extractive", "generative_step", "pointer_prefill"])
def test_every_graph_can_be_written_alone(checkpoint: Path, tmp_path: Path, graph: str) -> None:
    report = optimize_file(checkpoint, tmp_path / "model.onnx", graph=graph, fusion=True)
    assert report.difference_in_standard_deviations <= report.tolerance
    assert report.bytes_after == (tmp_path / "model.onnx").stat().st_size


def test_a_graph_above_the_tolerance_is_not_written(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="against PyTorch"):
        optimize_file(checkpoint, tmp_path / "model.onnx", graph="router", tolerance=1e-12)
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_bundle_states_what_its_precision_cost(
    nano_model: HybridModel, tokenizer_folder: Path, tmp_path: Path, precision: str
) -> None:
    manifest = export_bundle(
        nano_model, tokenizer_folder, tmp_path / "bundle", precision=precision, samples=SAMPLES, license="MIT"
    )
    stated = manifest.quantization
    assert stated["samples"] == 3
    assert set(stated["same_answers"]) == {"route", "generation", "qa", "summary"}
    assert all(error < (1e-3 if precision == "fp32" else 10) for error in stated["largest_error"].values())
    card = (tmp_path / "bundle/MODEL_CARD.md").read_text()
    assert f"{stated['largest_error']['generation logits']:.4g}" in card
    assert "**MIT**" in card
    if precision == "fp32":
        assert stated["same_next_tokens"] == 1.0
        assert set(stated["same_answers"].values()) == {1.0}


def test_eight_bits_need_less_than_a_third(nano_model: HybridModel, tokenizer_folder: Path, tmp_path: Path) -> None:
    sizes = {}
    for precision in ("fp32", "int8"):
        manifest = export_bundle(nano_model, tokenizer_folder, tmp_path / precision, precision=precision)
        sizes[precision] = sum(each.bytes for name, each in manifest.files.items() if name.startswith("graphs/weights"))
    assert sizes["int8"] < sizes["fp32"] / 3


def test_the_command_writes_a_bundle(checkpoint: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(export)
    (tmp_path / "provenance.json").write_text('{"license": "CC-BY-NC-SA-4.0", "sources": [{"name": "A"}]}')
    (tmp_path / "samples.jsonl").write_text('{"task": "generation", "input": "Hello"}\n')
    arguments = [str(checkpoint), "--output", str(tmp_path / "bundle"), "--tokenizer", str(tokenizer_folder)]
    arguments += ["--provenance", str(tmp_path / "provenance.json"), "--samples", str(tmp_path / "samples.jsonl")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    manifest = load_manifest(tmp_path / "bundle")
    assert (manifest.precision, manifest.license, manifest.preset) == ("int8", "CC-BY-NC-SA-4.0", "nano")
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1
    assert "already holds a bundle" in again.output


def test_samples_become_the_source_sequences_of_the_service(tokenizer_folder: Path) -> None:
    generation, qa, summary = encode_samples(tokenizer_folder, SAMPLES, limit=2048)
    assert (generation.ids[0], qa.ids[0], summary.ids[0]) == (5, 6, 7)
    assert qa.ids[qa.context.start - 1] == 4
    assert qa.context.stop == len(qa.ids)
    assert generation.context.start == generation.context.stop


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"task": "qa", "input": "a"}', '{"task": "x", "input": "a"}', '{"in": 1}']
)
def test_a_wrong_sample_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "samples.jsonl").write_text('{"task": "generation", "input": "a"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"samples\.jsonl, line 2"):
        load_samples(tmp_path / "samples.jsonl")


def test_a_bundle_is_exported_in_another_precision(
    nano_model: HybridModel, tokenizer_folder: Path, tmp_path: Path
) -> None:
    """A host with nothing but the shipped bundle makes the one that its GPU computes with."""
    known = {"license": "CC-BY-4.0", "training": {"steps": 7}}
    export_bundle(nano_model, tokenizer_folder, tmp_path / "int8", precision="int8", name="ours", provenance=known)
    done = CliRunner().invoke(
        cli.app,
        [
            *("export", str(tmp_path / "int8"), "--output", str(tmp_path / "fp16")),
            *("--tokenizer", str(tmp_path / "int8"), "--precision", "fp16"),
        ],
    )
    assert done.exit_code == 0, done.output
    former, found = (load_manifest(tmp_path / each) for each in ("int8", "fp16"))
    assert (found.precision, found.name, found.license) == ("fp16", "ours", "CC-BY-4.0")
    assert found.provenance == former.provenance == known
    assert_same_network(load_checkpoint(tmp_path / "fp16"), halved(load_checkpoint(tmp_path / "int8")))


def halved(network: HybridModel) -> HybridModel:
    """The network with every matrix rounded to float16."""
    for name, parameter in network.named_parameters():
        if not name.startswith("extractive.crf"):
            parameter.data = parameter.data.half().float()
    return network


def test_a_bundle_of_a_bundle_has_its_weights_byte_for_byte(
    nano_model: HybridModel, tokenizer_folder: Path, tmp_path: Path
) -> None:
    """Graphs change with the project; what was quantised once is never rounded again."""
    first, second = tmp_path / "first", tmp_path / "second"
    facts = {"source": "the tests"}
    export_bundle(nano_model, tokenizer_folder, first, precision="int8", name="once", license="MIT", provenance=facts)
    ran = CliRunner().invoke(cli.app, ["export", str(first), "--output", str(second), "--tokenizer", str(first)])
    assert ran.exit_code == 0, ran.output
    shards = sorted(path.name for path in (first / "graphs").glob("*.bin"))
    assert shards
    for name in shards:
        assert (first / "graphs" / name).read_bytes() == (second / "graphs" / name).read_bytes()
    manifest = load_manifest(second)
    assert (manifest.name, manifest.license, manifest.provenance) == ("once", "MIT", facts)
