"""DeepSpeed behind a small face: ZeRO 0 to 3, one optimizer step, the full state in and out."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cellmill.training.schedule import OptimizerConfig
from cellmill.training.zero_state import read_state, write_state


class Engine:
    """A module whose gradients, optimizer and, at stage 3, parameters are spread over the ranks.

    Parameters
    ----------
    module
        The module to train. It must be called through the engine: at stage 3 its parameters are only there
        during its forward.
    optimizer
        Optimizer settings; the learning rate is given to each step.
    zero_stage
        0 keeps everything on every rank, 1 spreads the optimizer state, 2 the gradients, 3 the parameters.

    Notes
    -----
    The caller owns the accumulation of gradients: any number of `backward` calls, equal on every rank, then
    one `step`. DeepSpeed averages gradients over ranks; `backward` undoes that, so that the gradient is the
    sum over ranks and micro-batches of what it was given.
    """

    def __init__(self, module: nn.Module, optimizer: OptimizerConfig, *, zero_stage: int) -> None:
        deepspeed = _import_deepspeed()
        self.world_size = torch.distributed.get_world_size()
        self.device = _device()
        module.to(self.device)
        kind = torch.optim.AdamW if optimizer.name == "adamw" else torch.optim.Adam
        base = kind(
            module.parameters(),
            lr=optimizer.lr,
            betas=optimizer.betas,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
        )
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=base,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "managed_gradient_accumulation": False,
                "gradient_clipping": optimizer.clip if zero_stage else 0.0,
                "zero_allow_untested_optimizer": True,
                "zero_optimization": {"stage": zero_stage, "overlap_comm": False},
                "steps_per_print": 2**31,
                "wall_clock_breakdown": False,
            },
        )
        self._base = base
        self._module = module
        self._norm: float | None = None
        if zero_stage == 0:  # without ZeRO, DeepSpeed clips but does not tell the norm
            base.register_step_pre_hook(lambda *_: self._clip(optimizer.clip))

    def __call__(self, *inputs: object) -> Any:
        """Run the module's forward."""
        return self._engine(*inputs)

    def train(self, mode: bool = True) -> None:
        """Switch between training and evaluation."""
        self._engine.train(mode)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this rank's part of the loss."""
        self._engine.backward(loss * self.world_size)

    def step(self, lr: float) -> float:
        """Update the weights and return the global norm of the gradient before clipping."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        return float(self._engine.get_global_grad_norm() or 0.0) if self._norm is None else self._norm

    def _clip(self, largest: float) -> None:
        limit = largest if largest > 0 else float("inf")
        self._norm = float(nn.utils.clip_grad_norm_(self._module.parameters(), limit))

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, fp32 tensor) of every parameter, its Adam moments and every buffer, in a fixed order.

        Collective: every rank must run through it. The tensors are whole on every rank.
        """
        return read_state(self._module, self._base)

    def load_state(self, state: Mapping[str, Tensor], *, steps: int) -> None:
        """Set what `state` yielded, whatever the number of ranks and the stage it was written with.

        Parameters
        ----------
        state
            Name to tensor; any mapping, read once per name.
        steps
            Optimizer steps taken so far, which Adam's bias correction needs.
        """
        write_state(self._module, self._base, state, steps=steps)


def prepare_process() -> None:
    """Set what DeepSpeed and torch read once; call before either computes anything in a process."""
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("LOCAL_RANK", "0")  # set by Ray Train where there are several
    if not torch.distributed.is_initialized():
        c10d: Any = torch.distributed  # its stores are not in its type stubs
        c10d.init_process_group("gloo", store=c10d.HashStore(), rank=0, world_size=1)


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _import_deepspeed() -> Any:
    prepare_process()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops

    # DeepSpeed names the ops it could compile here; an empty table keeps it from compiling any at start (45 s).
    deepspeed.ops.__dict__["__compatible_ops__"] = {}
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed
