"""Which attention kernels run where, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from cellmill.errors import ConfigError
from cellmill.training.model.attention.dense import dense_attention
from cellmill.training.model.attention.flash_cpu import FlashCPU
from cellmill.training.model.attention.flash_cuda import FlashCUDA
from cellmill.training.model.layout import KernelName, QueryPlan

Kernel = Callable[[Tensor, Tensor | None, QueryPlan, int], Tensor]
Wanted = Literal["auto", "flash", "sdpa"]

_CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_CUDA_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Backend:
    """An attention backend and the reason it was chosen."""

    name: KernelName
    reason: str


def describe_backend(
    device: torch.device | str,
    *,
    dtype: torch.dtype | None = None,
    d_head: int = 64,
    attention: Wanted = "auto",
) -> Backend:
    """Name the backend that would run, and say why.

    Parameters
    ----------
    device
        Device of the model.
    dtype
        Dtype of its activations; by default bfloat16 on CUDA and float32 elsewhere.
    d_head
        Width of one head.
    attention
        What the configuration asks for.

    Raises
    ------
    ConfigError
        ``flash`` was asked for and cannot run.
    """
    device = torch.device(device)
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return _choose(device, dtype, d_head, attention)


@cache
def _choose(device: torch.device, dtype: torch.dtype, d_head: int, wanted: Wanted) -> Backend:
    if wanted == "sdpa":
        return Backend("sdpa", "asked for by `attention: sdpa`; a dense mask, about twice the needed work")
    obstacle = _flash_obstacle(device, dtype, d_head)
    if obstacle is None:
        if device.type == "cpu":
            return Backend("flash-cpu", "torch's flash kernels for CPU, one call per group of equal cells")
        return Backend("flash-cuda", "torch's built-in flash attention, one variable-length call per layer")
    if wanted == "flash":
        raise ConfigError(
            f"Flash attention cannot run: {obstacle}.",
            where="model.attention",
            fix="Set `attention: auto`, or train in bfloat16 on a GPU of compute capability 8.0 or later.",
        )
    return Backend("sdpa", f"dense mask, because {obstacle}")


def _flash_obstacle(device: torch.device, dtype: torch.dtype, d_head: int) -> str | None:
    if device.type == "cpu":
        return None if dtype in _CPU_DTYPES else f"its CPU kernels do not take {dtype}"
    if device.type != "cuda":
        return f"torch has no flash kernels for {device.type}"
    if dtype not in _CUDA_DTYPES:
        return f"its CUDA kernels take bfloat16 and float16, not {dtype}"
    if d_head % 8 or d_head > 256:
        return f"its CUDA kernels take heads of a multiple of 8 up to 256, not {d_head}"
    if torch.version.hip is not None:
        return "its kernels were written for CUDA and are untested on ROCm"
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    return None


def kernel(backend: Backend) -> Kernel:
    """Return the function that runs a backend."""
    return _KERNELS[backend.name]


_KERNELS: dict[KernelName, Kernel] = {
    "flash-cpu": FlashCPU.apply,
    "flash-cuda": FlashCUDA.apply,
    "sdpa": dense_attention,
}
