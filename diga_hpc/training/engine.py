"""Engine: a network trained by DeepSpeed. The only module that imports deepspeed.

    engine(images) -> Prediction     forward pass in the configured precision
    engine.backward(loss, samples)   once a micro batch
    engine.step(step) -> StepResult  after the last one: update, or nothing if not all is finite
    engine.gathered()                complete parameters on every rank, under every ZeRO stage
    engine.optimizer_state()         complete, per parameter: loads under any ZeRO stage and ranks

A stage that trains several networks has an engine for each. What DeepSpeed does not do is done
here: one skipped step on all ranks, running statistics averaged over ranks and restored, and an
optimizer state that loads under another ZeRO stage and another number of ranks.
"""

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from diga_hpc.config import Config, OptimizerSection, TrainingSection
from diga_hpc.distributed.world import World
from diga_hpc.models.base import Prediction, SegmentationModel
from diga_hpc.models.batch_norm import moving_statistics
from diga_hpc.training.optimizer import MOMENTS, build_optimizer, rates
from diga_hpc.training.precision import Precision

# Steps between two throughput lines of DeepSpeed: never, as the loop logs its own.
NEVER = 2**62


class StepResult(NamedTuple):
    """Outcome of a step."""

    applied: bool
    """False: a loss or gradient was not finite, and nothing was changed."""
    gradient_norm: float
    """Norm over all parameters and ranks, before clipping."""


class Engine:
    """A network and its optimizer on this rank's device; replicated or partitioned as ZeRO says."""

    def __init__(
        self,
        network: nn.Module,
        optimizer_section: OptimizerSection,
        config: Config,
        section: TrainingSection,
        world: World,
    ):
        # Importing it takes seconds, and reads which accelerator `distributed.world` chose.
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # A C++ extension for ranks on one CPU host: DeepSpeed would compile it at the first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._deepspeed = deepspeed
        self.optimizer_section = optimizer_section
        self.section = section
        self.world = world
        self.network = network.to(world.device)
        self.autocast = Precision.of(config.engine, world.device)
        share = section.batch.share(world.size)
        self.micro_batch = min(config.engine.micro_batch or share, share)
        # The last micro batch may be smaller than the others.
        self.accumulation = -(-share // self.micro_batch)
        self._share = share
        self._backwards = 0
        self._zero = config.engine.zero_stage
        optimizer = build_optimizer(self.network, optimizer_section)
        self._engine, *_ = deepspeed.initialize(
            model=self.network,
            optimizer=optimizer,
            config=self._deepspeed_config(),
            # `distributed.world` has joined the ranks already.
            dist_init_required=False,
        )
        self._torch_optimizer = optimizer
        self._moments = MOMENTS[optimizer_section.name]
        self._clear_optimizer()
        # Forward passes change running statistics before it is known whether the step is finite, so
        # a copy is kept to restore them from.
        self._buffers = list(self.network.buffers())
        self._buffers_before = [buffer.clone() for buffer in self._buffers]
        self._between_steps = True

    def _deepspeed_config(self) -> dict[str, Any]:
        # Without ZeRO, DeepSpeed knows nothing of steps that are not finite: `_clip_or_discard`
        # clips as well.
        clip = self.optimizer_section.clip_norm if self._zero else 0.0
        return {
            "train_micro_batch_size_per_gpu": self.micro_batch,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": clip,
            "zero_optimization": {"stage": self._zero},
            # Torch's optimizers, not DeepSpeed's own: the same update with and without ZeRO.
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": NEVER,
        }

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """Forward pass with gradients.

        A segmentation network takes images [N,3,H,W] in [0,1] and keys [N], and gives a Prediction.
        """
        if self._between_steps:
            self._between_steps = False
            _copy(self._buffers, to=self._buffers_before)
        with self.autocast():
            output = self._engine(*inputs)
        # DeepSpeed may rebuild a named tuple as a plain one.
        return Prediction(*output) if isinstance(self.network, SegmentationModel) else output

    def backward(
        self, loss: torch.Tensor, samples: int, finite: torch.Tensor | None = None
    ) -> None:
        """Add the gradient of `loss`, a mean over a micro batch of `samples` images of a domain.

        finite: bool scalar, whether every loss of the stage is; by default whether this one is.
        """
        self._backwards += 1
        if finite is None:
            finite = loss.detach().isfinite()
        # A loss may be infinite while its gradient is finite. A NaN in the gradient lets `step` see
        # it on all ranks without a host synchronisation here.
        poison = torch.where(finite, 1.0, float("nan"))
        # DeepSpeed divides by the number of micro batches, which may differ in size.
        self._engine.backward(loss * (poison * (samples * self.accumulation / self._share)))
        if self._backwards < self.accumulation:
            # Between micro batches DeepSpeed's step only counts.
            self._engine.step()

    def step(self, step: int) -> StepResult:
        """Update with the rates of step `step`, after `backward` of all micro batches.

        If a loss or gradient is not finite on any rank, no rank changes anything: running
        statistics are restored to those of before the forward passes.
        """
        assert self._backwards == self.accumulation, f"{self._backwards} of {self.accumulation}"
        self._backwards = 0
        self._between_steps = True
        self._set_rates(step)
        # Reading the gradient's norm is the one host synchronisation of a training step: all of the
        # backward pass is queued by then.
        if self._zero:
            # ZeRO looks for overflow on all ranks, and skips the update itself.
            self._engine.step()
            norm = float(self._engine.get_global_grad_norm())
            result = StepResult(not self._engine.optimizer.overflow, norm)
        else:
            result = self._clip_or_discard()
            self._engine.step()
        if result.applied:
            # Each rank updated them from its own part of the batch.
            self.world.mean(moving_statistics(self.network))
        else:
            _copy(self._buffers_before, to=self._buffers)
        return result

    def _clip_or_discard(self) -> StepResult:
        """Clip, and skip a step whose gradient is not finite, as the optimizers of ZeRO do."""
        # The gradients are means over ranks by now, hence the same on all of them.
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        limit = self.optimizer_section.clip_norm or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        applied = math.isfinite(norm)
        if not applied:
            # The optimizer skips parameters without a gradient.
            for parameter in parameters:
                parameter.grad = None
        return StepResult(applied, norm)

    def rates(self, step: int) -> dict[str, float]:
        """Learning rate of each part of the network at a step."""
        parts = {group["part"] for group in self._torch_optimizer.param_groups}
        all_rates = rates(self.optimizer_section, self.section, step)
        return {part: rate for part, rate in all_rates.items() if part in parts}

    def _set_rates(self, step: int) -> None:
        rates = self.rates(step)
        for group in self._torch_optimizer.param_groups:
            group["lr"] = rates[group["part"]]

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Within, `network` has its complete parameters on every rank; they must not be changed."""
        # Only stage 3 partitions parameters.
        if self._zero < 3:
            yield
        else:
            with self._deepspeed.zero.GatheredParameters(list(self.network.parameters())):
                yield

    # ------------------------------------------------------------------------ state for checkpoints

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """Complete float32 tensors `{moment}/{parameter}`, and the `step` count.

        Every rank must call it: ZeRO gathers the partitions.
        """
        state = {"step": self._step_count()}
        for name, parameter in self._trainable():
            for moment in self._moments:
                state[f"{moment}/{name}"] = self._get_moment(parameter, moment)
        return state

    def load_optimizer_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what `optimizer_state` returned, under any ZeRO stage and number of ranks."""
        for name, parameter in self._trainable():
            for moment in self._moments:
                self._set_moment(parameter, moment, state[f"{moment}/{name}"].to(self.world.device))
        self._set_step_count(state["step"])

    def _trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]

    def _clear_optimizer(self) -> None:
        """Create the optimizer's state before the first step: moments of zero, no step counted.

        `load_optimizer_state` needs it to exist, while DeepSpeed may create it in the first step.
        """
        for partition in self._partitions():
            state = self._torch_optimizer.state[partition]
            state |= {moment: torch.zeros_like(partition) for moment in self._moments}
        if self._zero in (1, 2):
            # Links the state to the network's parameters; DeepSpeed does so after the first step.
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()
        self._set_step_count(torch.tensor(0.0))

    def _partitions(self) -> list[torch.Tensor]:
        """The tensors that the optimizer keeps state of: parameters, or flat partitions of ZeRO."""
        if self._zero == 3:
            # Its groups are empty between steps: each partition is put in for its own update.
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [p for group in self._torch_optimizer.param_groups for p in group["params"]]

    def _step_count(self) -> torch.Tensor:
        # All parameters have taken the same number of steps; SGD counts none.
        counts = [
            state["step"] for state in self._torch_optimizer.state.values() if "step" in state
        ]
        return counts[0].detach().clone() if counts else torch.tensor(0.0)

    def _set_step_count(self, count: torch.Tensor) -> None:
        if self.optimizer_section.name == "adamw":
            # On the CPU, where torch's AdamW keeps it: a step then needs no host synchronisation.
            for state in self._torch_optimizer.state.values():
                state["step"] = count.detach().clone().cpu()

    def _get_moment(self, parameter: nn.Parameter, moment: str) -> torch.Tensor:
        if self._zero:
            return self._deepspeed.utils.safe_get_full_optimizer_state(parameter, moment)
        return self._torch_optimizer.state[parameter][moment].detach()

    def _set_moment(self, parameter: nn.Parameter, moment: str, value: torch.Tensor) -> None:
        if self._zero:
            self._deepspeed.utils.safe_set_full_optimizer_state(parameter, value, moment)
        else:
            self._torch_optimizer.state[parameter][moment].copy_(value)


def _copy(tensors: list[torch.Tensor], *, to: list[torch.Tensor]) -> None:
    """Copy all tensors in one operation; there may be none."""
    if tensors:
        torch._foreach_copy_(to, tensors)
