"""Learning rate as a pure function of the step, so that it needs no state in a checkpoint."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from cellmill.config import Config


class OptimizerConfig(Config):
    """How weights are updated.

    Attributes
    ----------
    name
        ``adamw`` (decoupled weight decay) or ``adam``.
    lr
        Peak learning rate.
    betas, eps, weight_decay
        As in torch.
    warmup
        Linear warm-up: a number of steps, or below 1 a share of all steps.
    schedule
        After the warm-up: ``cosine`` to `final_lr` x `lr` at the last step, or ``constant``.
    final_lr
        Share of the peak that is left at the end of the cosine.
    clip
        Largest global norm of the gradient; 0 switches clipping off.
    """

    name: Literal["adamw", "adam"] = "adamw"
    lr: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup: float = Field(0.1, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    final_lr: float = Field(0.0, ge=0, le=1)
    clip: float = Field(1.0, ge=0)


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of one optimizer step.

    Parameters
    ----------
    config
        Peak, warm-up and shape.
    step
        Number of the step, from 0.
    total_steps
        Steps of the whole run.

    Returns
    -------
    float
        The first step of a warm-up already learns: lr x 1/warmup.
    """
    warmup = round(config.warmup * total_steps) if config.warmup < 1 else round(config.warmup)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.final_lr + (1 - config.final_lr) * cosine)
