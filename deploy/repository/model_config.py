"""Triton's description of each model, as its own protobuf message, from one table of interfaces.

| model | reads | writes | batches |
|---|---|---|---|
| hybrid_lm | input_ids | logits [S,V] | dynamic, by Triton |
| router | input_ids | task_probabilities [3] | dynamic, by Triton |
| qa | input_ids, lengths [1] | emissions [S,3] | dynamic, by Triton |
| generator | the tables of triton/wire.py | the same | by the engine |

The two backends differ in one line of a stateless model, `platform` against `backend`: each ignores the parameters
that are meant for the other. Triton's dynamic batching joins only requests of equal shape, so requests that shall run
together must be padded to one length, as the gateway's are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from deploy.repository.profiles import Backend, Profile
from deploy.triton.limits import EngineSettings
from deploy.triton.manifest import Limits, Manifest
from deploy.triton.wire import REQUEST_TENSORS, RESPONSE_TENSORS, TensorSpec

GENERATOR = "generator"
TAGS = 3
TASKS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Interface:
    """What a stateless model reads and writes, without the batch dimension."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def interfaces(vocabulary: int) -> dict[str, Interface]:
    """The interface of every stateless model."""
    ids = _tensor("input_ids", "INT64", -1)
    return {
        "hybrid_lm": Interface(inputs=(ids,), outputs=(_tensor("logits", "FP32", -1, vocabulary),)),
        "router": Interface(inputs=(ids,), outputs=(_tensor("task_probabilities", "FP32", TASKS),)),
        "qa": Interface(
            inputs=(ids, _tensor("lengths", "INT32", 1)), outputs=(_tensor("emissions", "FP32", -1, TAGS),)
        ),
    }


def model_configs(
    manifest: Manifest, bundle_sha256: str, backend: Backend, profile: Profile
) -> dict[str, triton.ModelConfig]:
    """The configuration of every model.

    Each names the bundle that it serves, in the parameters `bundle` and `bundle_sha256`, so that a client that holds
    another one can tell. Raises ValueError where the profile does not fit the backend.
    """
    if profile.gpu and backend is Backend.PYTHON:
        raise ValueError(f"profile {profile.name} needs Triton's ONNX Runtime backend: pass --backend onnxruntime")
    vocabulary = int(manifest.config["vocab_size"])
    configs = {
        name: _stateless(name, interface, manifest.limits.max_batch_size, backend, profile)
        for name, interface in interfaces(vocabulary).items()
    }
    configs[GENERATOR] = _generator(manifest.limits, profile)
    for config in configs.values():
        config.MergeFrom(
            triton.ModelConfig(parameters=_parameters({"bundle": manifest.name, "bundle_sha256": bundle_sha256}))
        )
    return configs


def to_text(config: triton.ModelConfig) -> str:
    """The text of config.pbtxt."""
    return text_format.MessageToString(config)


def _stateless(
    name: str, interface: Interface, batch_size: int, backend: Backend, profile: Profile
) -> triton.ModelConfig:
    config = triton.ModelConfig(
        name=name,
        max_batch_size=batch_size,
        input=_inputs(interface.inputs),
        output=_outputs(interface.outputs),
        dynamic_batching=triton.ModelDynamicBatching(
            preferred_batch_size=[size for size in profile.preferred_batch_sizes if size <= batch_size],
            max_queue_delay_microseconds=profile.batch_delay_us,
        ),
        instance_group=[_instances(profile.instances, gpu=profile.gpu)],
        parameters=_parameters(
            {
                "graph": name,
                "threads": profile.threads,
                "verify": True,
                # Triton's ONNX Runtime backend has names of its own for the same wishes; without an arena its memory
                # does not stay as large as the largest batch it ever saw.
                "intra_op_thread_count": profile.threads,
                "enable_mem_arena": 0,
                "enable_mem_pattern": 0,
            }
        ),
    )
    if backend is Backend.ONNXRUNTIME:
        config.platform = "onnxruntime_onnx"
    else:
        config.backend = "python"
    return config


def _generator(limits: Limits, profile: Profile) -> triton.ModelConfig:
    settings = EngineSettings(
        slots=profile.slots,
        max_source_tokens=limits.max_source_tokens,
        max_target_tokens=limits.max_target_tokens,
        threads=profile.threads,
        prefill_tokens=profile.prefill_tokens,
        gap_steps=profile.gap_steps,
        verify=True,
    )
    return triton.ModelConfig(
        name=GENERATOR,
        backend="python",
        max_batch_size=0,
        input=_inputs(REQUEST_TENSORS),
        output=_outputs(RESPONSE_TENSORS),
        model_transaction_policy=triton.ModelTransactionPolicy(decoupled=True),
        instance_group=[_instances(1, gpu=False)],
        parameters=_parameters(asdict(settings)),
    )


def _tensor(name: str, datatype: str, *dims: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, dims=dims, optional=False)


def _datatype(spec: TensorSpec) -> int:
    return triton.DataType.Value(f"TYPE_{spec.datatype}")


def _inputs(specs: Iterable[TensorSpec]) -> list[triton.ModelInput]:
    return [
        triton.ModelInput(name=each.name, data_type=_datatype(each), dims=each.dims, optional=each.optional)
        for each in specs
    ]


def _outputs(specs: Iterable[TensorSpec]) -> list[triton.ModelOutput]:
    return [triton.ModelOutput(name=each.name, data_type=_datatype(each), dims=each.dims) for each in specs]


def _instances(count: int, *, gpu: bool) -> triton.ModelInstanceGroup:
    kind = triton.ModelInstanceGroup.KIND_GPU if gpu else triton.ModelInstanceGroup.KIND_CPU
    return triton.ModelInstanceGroup(count=count, kind=kind)


def _parameters(values: Mapping[str, str | int | float | bool]) -> dict[str, triton.ModelParameter]:
    return {
        name: triton.ModelParameter(string_value=str(value).lower() if isinstance(value, bool) else str(value))
        for name, value in values.items()
    }
