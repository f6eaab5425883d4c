"""The generated model repository: what it promises Triton."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto
from tritonclient.grpc import model_config_pb2 as triton

from deploy.repository import build as repository_build
from deploy.repository.build import build_repository
from deploy.repository.profiles import PROFILES, Backend, Profile, ProfileName
from deploy.triton.limits import EngineSettings
from deploy.triton.manifest import bundle_digest, load_manifest
from deploy.triton.wire import REQUEST_TENSORS, RESPONSE_TENSORS
from tests.deploy.repository.repository_files import read_config

CPU, GPU = PROFILES[ProfileName.CPU], PROFILES[ProfileName.GPU]
STATELESS = ("hybrid_lm", "router", "qa")
DATATYPES = {TensorProto.FLOAT: "FP32", TensorProto.INT32: "INT32", TensorProto.INT64: "INT64"}


@pytest.fixture(scope="module", params=list(Backend), ids=str)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, nano_bundle: Path):
    """A repository for each backend."""
    folder = tmp_path_factory.mktemp("repositories") / request.param
    build_repository(nano_bundle, folder, backend=request.param, profile=CPU)
    return folder


def interface(values) -> list[tuple[str, str, list[int]]]:
    """Names, types and dimensions, as Triton's configuration states them."""
    return sorted((each.name, triton.DataType.Name(each.data_type)[len("TYPE_") :], list(each.dims)) for each in values)


def graph_interface(values) -> list[tuple[str, str, list[int]]]:
    """The same of a graph, without the batch dimension."""
    return sorted(
        (
            each.name,
            DATATYPES[each.type.tensor_type.elem_type],
            [-1 if dim.dim_param else dim.dim_value for dim in each.type.tensor_type.shape.dim[1:]],
        )
        for each in values
    )


@pytest.mark.parametrize("model", STATELESS)
def test_a_configuration_states_exactly_what_the_graph_takes_and_gives(
    built: Path, nano_bundle: Path, model: str
) -> None:
    graph = onnx.load(nano_bundle / "graphs" / f"{model}.onnx", load_external_data=False).graph
    config = read_config(built, model)
    assert config.name == model
    assert interface(config.input) == graph_interface(graph.input)
    assert interface(config.output) == graph_interface(graph.output)


def test_hybrid_lm_has_the_published_interface(built: Path) -> None:
    config = read_config(built, "hybrid_lm")
    assert config.max_batch_size == 32
    assert config.HasField("dynamic_batching")
    assert interface(config.input) == [("input_ids", "INT64", [-1])]
    assert interface(config.output) == [("logits", "FP32", [-1, 32_000])]


def test_the_generator_is_decoupled_and_speaks_the_wire_format(built: Path) -> None:
    config = read_config(built, "generator")
    assert config.model_transaction_policy.decoupled
    assert (config.backend, config.max_batch_size) == ("python", 0)
    for stated, specs in ((config.input, REQUEST_TENSORS), (config.output, RESPONSE_TENSORS)):
        assert interface(stated) == sorted((each.name, each.datatype, list(each.dims)) for each in specs)
    assert [each.optional for each in config.input] == [each.optional for each in REQUEST_TENSORS]
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    assert EngineSettings.from_parameters(parameters) == EngineSettings(slots=32)
    named = "slots max_source_tokens max_target_tokens threads prefill_tokens gap_steps warm_positions device verify"
    assert parameters.keys() == {*named.split(), "bundle", "bundle_sha256"}


@pytest.mark.parametrize("model", [*STATELESS, "generator"])
def test_every_model_names_the_bundle_that_it_serves(built: Path, nano_bundle: Path, model: str) -> None:
    parameters = read_config(built, model).parameters
    assert parameters["bundle"].string_value == "trident-nano"
    expected = hashlib.sha256((nano_bundle / "manifest.json").read_bytes()).hexdigest()
    assert parameters["bundle_sha256"].string_value == expected == bundle_digest(nano_bundle)


def test_another_manifest_is_another_digest(tmp_path: Path, nano_bundle: Path) -> None:
    other = shutil.copytree(nano_bundle, tmp_path / "other")
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"trident-nano"', '"trident-nanu"'))
    built = build_repository(other, tmp_path / "r", backend=Backend.PYTHON, profile=CPU)
    assert built.bundle_sha256 == bundle_digest(other) != bundle_digest(nano_bundle)
    assert read_config(tmp_path / "r", "qa").parameters["bundle"].string_value == "trident-nanu"


def test_the_engine_s_limits_are_the_bundle_s(tmp_path: Path, nano_bundle: Path) -> None:
    """Neither below them, where the gateway would send what the engine refuses, nor left to a default."""
    larger = shutil.copytree(nano_bundle, tmp_path / "larger")
    manifest = json.loads((larger / "manifest.json").read_text())
    manifest["limits"] |= {"max_source_tokens": 4096, "max_target_tokens": 640}
    (larger / "manifest.json").write_text(json.dumps(manifest))
    build_repository(larger, tmp_path / "r", backend=Backend.PYTHON, profile=CPU)
    parameters = read_config(tmp_path / "r", "generator").parameters
    assert parameters["max_source_tokens"].string_value == "4096"
    assert parameters["max_target_tokens"].string_value == "640"


def test_subpackages_of_the_engine_are_copied_without_caches(
    tmp_path: Path, nano_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(repository_build.ENGINE_SOURCE, tmp_path / "engine")
    (source / "inner" / "__pycache__").mkdir(parents=True)
    (source / "inner" / "__init__.py").write_text("")
    (source / "inner" / "part.py").write_text("ANSWER = 1\n")
    (source / "inner" / "__pycache__" / "part.cpython-311.pyc").write_bytes(b"cache")
    monkeypatch.setattr(repository_build, "ENGINE_SOURCE", source)

    def build() -> bool:
        return build_repository(nano_bundle, tmp_path / "r", backend=Backend.PYTHON, profile=CPU).rebuilt

    assert build()
    copied = tmp_path / "r" / "generator" / "1" / "trident_engine"
    assert (copied / "inner" / "part.py").read_text() == "ANSWER = 1\n"
    assert not list(copied.rglob("*.pyc"))
    assert not build()
    (source / "inner" / "part.py").write_text("ANSWER = 2\n")
    assert build()


def test_a_profile_reaches_the_models(tmp_path: Path, nano_bundle: Path) -> None:
    profile = Profile(name="small", slots=3, threads=2, prefill_tokens=128, instances=2, batch_delay_us=7)
    build_repository(nano_bundle, tmp_path / "r", backend=Backend.ONNXRUNTIME, profile=profile)
    parameters = read_config(tmp_path / "r", "generator").parameters
    assert [parameters[name].string_value for name in ("slots", "threads", "prefill_tokens")] == ["3", "2", "128"]
    router = read_config(tmp_path / "r", "router")
    assert router.dynamic_batching.max_queue_delay_microseconds == 7
    assert router.instance_group[0].count == 2
    assert router.parameters["intra_op_thread_count"].string_value == "2"


def test_the_gpu_profile_moves_the_stateless_models_only(tmp_path: Path, nano_bundle: Path) -> None:
    build_repository(nano_bundle, tmp_path / "r", backend=Backend.ONNXRUNTIME, profile=GPU)
    kinds = {name: read_config(tmp_path / "r", name).instance_group[0].kind for name in (*STATELESS, "generator")}
    gpu, cpu = triton.ModelInstanceGroup.KIND_GPU, triton.ModelInstanceGroup.KIND_CPU
    assert kinds == {"hybrid_lm": gpu, "router": gpu, "qa": gpu, "generator": cpu}
    with pytest.raises(ValueError, match="needs Triton's ONNX Runtime backend: pass --backend onnxruntime"):
        build_repository(nano_bundle, tmp_path / "p", backend=Backend.PYTHON, profile=GPU)


def test_backends_differ_in_the_backend_alone(tmp_path: Path, nano_bundle: Path) -> None:
    for backend in Backend:
        build_repository(nano_bundle, tmp_path / backend, backend=backend, profile=CPU)
    for model in STATELESS:
        native, python = (read_config(tmp_path / backend, model) for backend in Backend)
        assert (native.platform, python.backend) == ("onnxruntime_onnx", "python")
        native.ClearField("platform")
        python.ClearField("backend")
        assert native == python
    generators = [(tmp_path / backend / "generator" / "config.pbtxt").read_bytes() for backend in Backend]
    assert generators[0] == generators[1]


def test_weights_are_stored_once_and_apart_from_the_bundle(built: Path, nano_bundle: Path) -> None:
    first, *others = built.rglob("weights-*.bin")
    assert len(others) == 3
    assert all(each.samefile(first) for each in others)
    # The onnx library refuses weights that have several names.
    assert onnx.load(nano_bundle / "graphs" / "qa.onnx").graph.initializer


def test_the_space_is_told_that_the_files_really_take(tmp_path: Path, nano_bundle: Path) -> None:
    result = build_repository(nano_bundle, tmp_path / "r", backend=Backend.PYTHON, profile=CPU)
    weights = (nano_bundle / "graphs" / "weights-000.bin").stat().st_size
    assert weights < result.bytes < 1.5 * weights


def test_files_are_copied_where_a_link_is_impossible(
    tmp_path: Path, nano_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    build_repository(nano_bundle, tmp_path / "r", backend=Backend.PYTHON, profile=CPU)
    for model in STATELESS:
        load_manifest(tmp_path / "r" / model / "1", graphs=[model])
    assert all(each.stat().st_nlink == 1 for each in (tmp_path / "r").rglob("weights-*.bin"))


def test_a_bundle_of_symbolic_links_is_followed_to_its_files(tmp_path: Path, nano_bundle: Path) -> None:
    linked = tmp_path / "linked"
    for source in nano_bundle.rglob("*"):
        if source.is_file():
            target = linked / source.relative_to(nano_bundle)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)
    build_repository(linked, tmp_path / "r", backend=Backend.ONNXRUNTIME, profile=CPU)
    assert not any(each.is_symlink() for each in (tmp_path / "r").rglob("*"))


def test_native_graphs_find_their_weights_beside_them(tmp_path: Path, nano_bundle: Path) -> None:
    build_repository(nano_bundle, tmp_path / "r", backend=Backend.ONNXRUNTIME, profile=CPU)
    for model in STATELESS:
        path = tmp_path / "r" / model / "1" / "model.onnx"
        graph = onnx.load(path, load_external_data=False).graph
        places = {entry.value for each in graph.initializer for entry in each.external_data if entry.key == "location"}
        assert places
        assert all((path.parent / place).is_file() for place in places)


def test_python_models_import_nothing_outside_their_folder(tmp_path: Path, nano_bundle: Path) -> None:
    build_repository(nano_bundle, tmp_path / "r", backend=Backend.PYTHON, profile=CPU)
    script = (
        "import importlib, sys, types; sys.modules['triton_python_backend_utils'] = types.ModuleType('stub')\n"
        f"sys.path[:0] = [{str(tmp_path / 'r' / 'generator')!r}]\n"
        "print(importlib.import_module('1.model').TritonPythonModel.__module__)\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('deploy', 'service', 'model', 'training')])"
    )
    # -P: the folder that the command is run in, the project's own, is no place to import from.
    answer = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert answer.stdout.splitlines() == ["1.trident_engine.generator_model", "[]"]
