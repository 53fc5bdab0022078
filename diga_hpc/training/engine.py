"""The training engine: DeepSpeed behind what a stage needs. No other module imports deepspeed.

engine(images) -> Prediction     forward, in the configured precision
engine.backward(loss)            once a micro batch
engine.step(step) -> StepResult  after the last one: update, or nothing at all if anything is not finite
engine.gathered()                the student's parameters whole, under every ZeRO stage
engine.optimizer_state()         per parameter and whole, so that it loads under any ZeRO stage and rank count
"""

import contextlib
import logging
import math
from typing import NamedTuple

import torch
from torch import nn

from diga_hpc.config import Config, TrainingSection
from diga_hpc.distributed.world import World
from diga_hpc.models.base import Prediction, SegmentationModel
from diga_hpc.models.batch_norm import float_buffers
from diga_hpc.training.optimizer import build_optimizer

# What each optimiser remembers of a parameter; both also count steps.
MOMENTS = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}


class StepResult(NamedTuple):
    """Whether the update was applied, and the gradient's global norm before clipping."""

    applied: bool
    gradient_norm: float


class Engine:
    """A student and its optimiser on this rank's device; replicated or partitioned as ZeRO says."""

    def __init__(
        self, student: SegmentationModel, config: Config, section: TrainingSection, world: World
    ):
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # A C++ extension for ranks that share a CPU host; DeepSpeed would compile it at the first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._deepspeed = deepspeed
        self.config = config
        self.section = section
        self.world = world
        self.student = student.to(world.device)
        share = section.batch.share(world.size)
        self.micro_batch = min(config.engine.micro_batch or share, share)
        self.accumulation = -(-share // self.micro_batch)
        self._share = share
        self._backwards = 0
        self._zero = config.engine.zero_stage
        optimizer = build_optimizer(self.student, config)
        self._engine, *_ = deepspeed.initialize(
            model=self.student,
            optimizer=optimizer,
            config=self._deepspeed_config(),
            dist_init_required=False,
        )
        self._torch_optimizer = optimizer
        self._moments = MOMENTS[config.optimizer.name]
        self._clear_optimizer()
        # What forward passes change, and how it was before this step's: a step may have to be taken back.
        self._buffers = list(self.student.buffers())
        self._buffers_before = [buffer.clone() for buffer in self._buffers]
        self._between_steps = True

    def _deepspeed_config(self) -> dict:
        clip = self.config.optimizer.clip_norm if self._zero else 0.0  # without ZeRO `step` clips
        return {
            "train_micro_batch_size_per_gpu": self.micro_batch,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": clip,
            "zero_optimization": {"stage": self._zero},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 2**62,
        }

    def __call__(self, images: torch.Tensor) -> Prediction:
        """images [B,3,H,W] in [0,1] -> Prediction, with gradients."""
        if self._between_steps:
            self._between_steps = False
            torch._foreach_copy_(self._buffers_before, self._buffers)
        with self.autocast():
            return Prediction(*self._engine(images))

    def autocast(self) -> torch.autocast:
        """The configured precision of forward passes."""
        enabled = self.config.engine.precision == "bf16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=enabled)

    def backward(self, loss: torch.Tensor, samples: int) -> None:
        """Add the gradient of `loss`, a mean over a micro batch of `samples` images of a domain.

        A loss that is not finite makes the gradient NaN even where its own gradient is finite (an infinite
        cross-entropy), so that `step` sees it on all ranks without a host synchronisation here.
        """
        self._backwards += 1
        poison = torch.where(loss.detach().isfinite(), 1.0, float("nan"))
        self._engine.backward(loss * (poison * (samples * self.accumulation / self._share)))
        if self._backwards < self.accumulation:
            self._engine.step()  # only counts the micro batch

    def step(self, step: int) -> StepResult:
        """Update with the rates of step `step`, after `backward` of all micro batches.

        If a loss or gradient is not finite on any rank, no rank changes anything; running statistics are then
        those of before the forward passes. Reading the gradient's norm is the one host synchronisation of a
        training step; by then the backward pass is all queued.
        """
        assert self._backwards == self.accumulation, (
            f"{self._backwards} of {self.accumulation} micro batches"
        )
        self._backwards = 0
        self._between_steps = True
        self._set_rates(step)
        if self._zero:
            self._engine.step()
            result = StepResult(
                not self._engine.optimizer.overflow, float(self._engine.get_global_grad_norm())
            )
        else:
            result = self._clip_or_discard()
            self._engine.step()
        if result.applied:
            self.world.mean(float_buffers(self.student))
        else:
            torch._foreach_copy_(self._buffers, self._buffers_before)
        return result

    def _clip_or_discard(self) -> StepResult:
        """What ZeRO's optimisers do themselves: clip, and skip a step whose gradient is not finite."""
        parameters = [p for p in self.student.parameters() if p.grad is not None]
        limit = self.config.optimizer.clip_norm or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        applied = math.isfinite(norm)
        if not applied:
            for parameter in parameters:
                parameter.grad = None  # the optimiser passes over parameters without a gradient
        return StepResult(applied, norm)

    def rates(self, step: int) -> dict[str, float]:
        """Learning rates of step `step`: initial * (1 - step/steps)**power."""
        optimizer = self.config.optimizer
        factor = self.section.lr_scale * (1 - step / self.section.steps) ** optimizer.poly_power
        return {"backbone": optimizer.lr_backbone * factor, "head": optimizer.lr_head * factor}

    def _set_rates(self, step: int) -> None:
        rates = self.rates(step)
        for group in self._torch_optimizer.param_groups:
            group["lr"] = rates[group["part"]]

    @contextlib.contextmanager
    def gathered(self):
        """Within, `engine.student` has its whole parameters on every rank; they must not be changed."""
        if self._zero < 3:
            yield
        else:
            with self._deepspeed.zero.GatheredParameters(list(self.student.parameters())):
                yield

    # ------------------------------------------------------------------------ state for checkpoints

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """`{moment}/{parameter}` whole, float32, and the `step` count. Every rank must call it."""
        state = {"step": self._step_count()}
        for name, parameter in self._trainable():
            for moment in self._moments:
                state[f"{moment}/{name}"] = self._get_moment(parameter, moment)
        return state

    def load_optimizer_state(self, state: dict[str, torch.Tensor]) -> None:
        """Undo of `optimizer_state`, under this engine's ZeRO stage and rank count."""
        for name, parameter in self._trainable():
            for moment in self._moments:
                self._set_moment(parameter, moment, state[f"{moment}/{name}"].to(self.world.device))
        self._set_step_count(state["step"])

    def _trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.student.named_parameters() if p.requires_grad]

    def _clear_optimizer(self) -> None:
        """Moments of zero and no step counted: what the optimisers start from, made to exist already.

        Under ZeRO the optimiser's parameters are flat partitions. Stages 1 and 2 leave them without state and
        link it to the model's parameters after the first step; stage 3 has taken a step with zero gradients.
        """
        if self._zero < 3:
            for group in self._torch_optimizer.param_groups:
                for partition in group["params"]:
                    state = self._torch_optimizer.state[partition]
                    state |= {moment: torch.zeros_like(partition) for moment in self._moments}
        if self._zero in (1, 2):
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()
        for state in self._torch_optimizer.state.values():
            for moment in self._moments:
                state[moment].zero_()
        self._set_step_count(torch.tensor(0.0))

    def _step_count(self) -> torch.Tensor:
        counts = [
            state["step"] for state in self._torch_optimizer.state.values() if "step" in state
        ]
        return counts[0].detach().clone() if counts else torch.tensor(0.0)

    def _set_step_count(self, count: torch.Tensor) -> None:
        if self.config.optimizer.name == "adamw":
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
