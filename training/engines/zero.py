"""ZeRO: data-parallel processes divide optimizer state, gradients and weights (Rajbhandari et al. 2020), by DeepSpeed.

One DeepSpeed engine holds one pipeline stage's part; the schedule around it is ours, for DeepSpeed's own pipeline
refuses ZeRO-2 and -3. What its engine has to be told beside that:

- A norm over the whole model counts every parameter once. DeepSpeed asks parameters that are marked, and all others on
  rank 0 of its model-parallel group. So every process says that it is not rank 0, and marks what it speaks for.
- ZeRO-3 compares the order of modules over all processes; stages have different ones. So only a stage's own processes
  compare.
- Parameters that are read outside of their module's forward pass are named, for ZeRO-3 to have them at hand.
- A back-to-back backward pass, without a forward pass between, has to say that the one before is over.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from training.config import Recipe
from training.engines.engine import WEIGHT, Engine, Schedule
from training.optimizer import make_adamw, trained_parameters
from training.parallel.mesh import Mesh, Ring, add_up
from training.parallel.stage import Stage

MOMENTS = ("exp_avg", "exp_avg_sq")
FIRST_SCALE_POWER = 16
"""fp16's loss is scaled by 2 to this at first."""


class ZeroEngine(Engine):
    """A stage in a DeepSpeed engine."""

    def __init__(
        self, stage: Stage, mesh: Mesh, recipe: Recipe, dtype: torch.dtype, tied: Ring, schedule: Schedule
    ) -> None:
        super().__init__(stage, mesh, recipe, dtype, tied, schedule)
        for name, parameter in self.parameters.items():
            parameter.model_parallel = self.counted[name]  # type: ignore[attr-defined]
        self.deepspeed = _initialize(stage, mesh, recipe, dtype)
        self.optimizer = self.deepspeed.optimizer

    def objective(self, losses: Tensor) -> Tensor:
        """DeepSpeed takes the mean over processes, where the losses of micro-batches add up."""
        return self.weigh(losses) * self.mesh.zero.size

    @property
    def recomputes(self) -> bool:
        """Gathered weights would stay from a forward pass to its backward pass, as many as a stage has in flight."""
        return self.recipe.parallel.zero == 3

    def forward(self, micro: Any, *received: Tensor) -> tuple[Tensor, ...]:
        return self.deepspeed(micro, *received)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        self.deepspeed.set_gradient_accumulation_boundary(is_last)
        self.optimizer.clear_backward_seen_flag()
        self.deepspeed.backward(loss, scale_wrt_gas=False)

    def weight(self, name: str) -> Tensor:
        return _get(self.parameters[name])

    def add_to_gradient(self, name: str, addend: Tensor) -> None:
        parameter: Any = self.parameters[name]
        if self.recipe.parallel.zero == 3:
            own = parameter._z3_optimizer.get_local_fp32_grad_for_param(parameter)
            parameter._z3_optimizer.set_local_grad_for_param(own + _share(parameter, addend).to(own.device), parameter)
        else:
            parameter.set_full_hp_grad(parameter.get_full_hp_grad() + addend)

    def step(self, factor: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.optimizer.learning_rate * factor
        self.deepspeed.step()
        return torch.as_tensor(float(self.deepspeed.get_global_grad_norm()))

    @property
    def loss_scale(self) -> float:
        return float(self.optimizer.loss_scale)

    def states(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        steps = [each["step"] for each in self.optimizer.optimizer.state.values() if "step" in each]
        if steps:
            self._link_moments()
        for name, parameter in self.parameters.items():
            state = {WEIGHT: _get(parameter)}
            if steps:
                state |= {moment: _get(parameter, moment) for moment in MOMENTS} | {"step": steps[0].float().clone()}
            yield name, state

    def restore(self, states: Mapping[str, dict[str, Tensor]], loss_scale: float) -> None:
        optimizer, is_stage_3 = self.optimizer, self.recipe.parallel.zero == 3
        flat = optimizer.fp32_partitioned_groups_flat if is_stage_3 else optimizer.single_partition_of_fp32_groups
        first = next(iter(self.parameters))
        if step := states[first].get("step"):
            for each in flat:
                moments = {moment: torch.zeros_like(each) for moment in MOMENTS}
                optimizer.optimizer.state[each] = {"step": step.clone().float(), **moments}
            self._link_moments()
        for name, parameter in self.parameters.items():
            state = states[name]
            for entry in (WEIGHT, *MOMENTS):
                if entry in state:
                    _set(parameter, state[entry], None if entry == WEIGHT else entry)
        self._take_weights()
        if self.dtype == torch.float16:
            optimizer.loss_scaler.cur_scale = loss_scale

    def _link_moments(self) -> None:
        """Tell ZeRO-1's and -2's parameters where their moments lie; DeepSpeed does so for the first group only."""
        optimizer = self.optimizer
        if self.recipe.parallel.zero == 3:
            return
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        for parameters, flat in zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(parameters, flat, optimizer.optimizer.state)

    def _take_weights(self) -> None:
        """The weights that the network reads, from the fp32 ones."""
        if self.recipe.parallel.zero == 3:
            for index in range(len(self.optimizer.fp16_groups)):
                self.optimizer._reassign_or_swap_out_partitioned_parameters(index)
            if kept_whole := self.optimizer.persistent_parameters:
                kept_whole[0].all_gather(kept_whole)
            return
        for group in self.optimizer.bit16_groups:
            for parameter in group:
                parameter.data.copy_(parameter.get_full_hp_param())

    def add_up_gradients(self) -> None:
        """The embedding's, over the stages that repeat it; all else DeepSpeed has added up."""
        ring = self.tied
        if ring.size == 1:
            return
        parameter: Any = self.parameters["embedding.weight"]
        if self.recipe.parallel.zero == 3:
            own = parameter._z3_optimizer.get_local_fp32_grad_for_param(parameter)
            parameter._z3_optimizer.set_local_grad_for_param(add_up(own.clone(), ring), parameter)
        else:
            parameter.set_full_hp_grad(add_up(parameter.get_full_hp_grad(), ring))


def deepspeed_config(recipe: Recipe, dtype: torch.dtype) -> dict[str, Any]:
    """What the recipe says, in DeepSpeed's words."""
    zero: dict[str, Any] = {"stage": recipe.parallel.zero}
    if recipe.parallel.zero == 3:
        # One group of parameters on every stage: norms are added up group by group.
        zero |= {"stage3_param_persistence_threshold": recipe.parallel.whole_below, "sub_group_size": 10**15}
    if recipe.memory.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": dtype != torch.float32}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": recipe.batch.micro_batches,
        "gradient_clipping": recipe.optimizer.clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # Else an offloaded step asks for DeepSpeed's own Adam, which has to be compiled on the spot.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16, "initial_scale_power": FIRST_SCALE_POWER},
        "steps_per_print": 10**15,
    }


class _Processes:
    """What DeepSpeed asks about other processes."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def get_data_parallel_group(self) -> Any:
        return self.mesh.zero.group or self.mesh.alone

    def get_data_parallel_rank(self) -> int:
        return self.mesh.zero.rank

    def get_data_parallel_world_size(self) -> int:
        return self.mesh.zero.size

    def get_model_parallel_group(self) -> Any:
        return self.mesh.model.group or self.mesh.alone

    def get_model_parallel_rank(self) -> int:
        """Never 0: parameters say themselves who counts them."""
        return 1 + self.mesh.tensor.rank

    def get_model_parallel_world_size(self) -> int:
        return self.mesh.tensor.size


def _initialize(stage: Stage, mesh: Mesh, recipe: Recipe, dtype: torch.dtype) -> Any:
    """The DeepSpeed engine around a stage."""
    os.environ.setdefault("LOCAL_RANK", "0")  # which ZeRO-3 reads wherever it compares
    import deepspeed
    from deepspeed.runtime.zero import partitioned_param_coordinator, register_external_parameter

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Else it compiles a shared-memory transport for the CPU on the spot.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("nccl" if mesh.device.type == "cuda" else "gloo")

    def same_in_stage(numbers: list[int]) -> None:
        if mesh.zero.group is None:
            return
        found: list = [None] * mesh.zero.size
        dist.all_gather_object(found, numbers, group=mesh.zero.group)
        assert all(each == numbers for each in found), "processes of one stage run its modules in different orders"

    partitioned_param_coordinator.assert_ints_same_as_other_ranks = same_in_stage
    optimizer = make_adamw(trained_parameters(stage), recipe.optimizer, fused=False)
    engine, *_ = deepspeed.initialize(
        model=stage,
        optimizer=optimizer,
        mpu=_Processes(mesh),
        config=deepspeed_config(recipe, dtype),
        dist_init_required=False,
    )
    if recipe.parallel.zero == 3:
        for name, parameter in stage.network.named_parameters():
            if name in ("embedding.weight", "hybrid.mix") or name.startswith("extractive.crf."):
                register_external_parameter(stage, parameter)
    return engine


def _get(parameter: Any, entry: str | None = None) -> Tensor:
    """The whole fp32 parameter, or what the optimizer remembers of it; data-parallel processes call it together."""
    if hasattr(parameter, "ds_id"):
        return parameter._z3_optimizer.get_full_hp_param(parameter, entry).view(parameter.ds_shape)
    return parameter.get_full_hp_param(entry)


def _set(parameter: Any, value: Tensor, entry: str | None) -> None:
    """Take this process' share of a whole value."""
    if not hasattr(parameter, "ds_id"):
        parameter.set_full_hp_param(value, entry)
        return
    parameter._z3_optimizer.set_local_hp_param(_share(parameter, value), parameter, entry)


def _share(parameter: Any, whole: Tensor) -> Tensor:
    """What this process has under ZeRO-3 of a whole value of a parameter."""
    own = parameter.ds_tensor.numel()
    begin = parameter._z3_optimizer._get_param_partition_rank(parameter) * own
    share = torch.zeros(own, device=whole.device)
    found = whole.flatten()[begin : begin + own]
    share[: len(found)] = found  # the last share is padded
    return share
