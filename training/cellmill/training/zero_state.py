"""The whole training state, gathered from and dealt out to ZeRO partitions.

A checkpoint holds whole fp32 tensors by parameter name, so it can be read at any number of ranks and any ZeRO stage,
needs no conversion, and no pickle. The three layouts differ in where the master copy of a parameter lives:

stage 0
    the parameter itself, with its moments in the optimizer's state;
stages 1 and 2
    a fragment (``param._hp_mapping``) of one flat fp32 partition per parameter group;
stage 3
    a partition of equal length on every rank, the last one padded (``param.ds_id``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MOMENTS = ("exp_avg", "exp_avg_sq")


def read_state(module: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Yield ``weights/NAME``, ``exp_avg/NAME``, ``exp_avg_sq/NAME`` of each parameter, then ``buffers/NAME``."""
    for name, param in module.named_parameters():
        if not param.requires_grad:
            yield f"weights/{name}", _whole(param)
            continue
        yield f"weights/{name}", _read(param, optimizer, None)
        for moment in MOMENTS:
            yield f"{moment}/{name}", _read(param, optimizer, moment)
    for name, buffer in module.named_buffers():
        yield f"buffers/{name}", buffer.detach().clone()


def write_state(module: nn.Module, optimizer: Optimizer, state: Mapping[str, Tensor], *, steps: int) -> None:
    """Set what `read_state` yielded; the inverse, at any number of ranks."""
    _create_moments(module, optimizer, steps)
    with torch.no_grad():
        for name, param in module.named_parameters():
            _set_weight(param, state[f"weights/{name}"])
            if param.requires_grad:
                for moment in MOMENTS:
                    _set_master(param, optimizer, moment, state[f"{moment}/{name}"])
        for name, buffer in module.named_buffers():
            buffer.copy_(state[f"buffers/{name}"])


def _read(param: nn.Parameter, optimizer: Optimizer, moment: str | None) -> Tensor:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if not _is_partitioned(param):
        tensor = param if moment is None else optimizer.state[param][moment]
        return tensor.detach().float().clone()
    if moment is None:
        whole = safe_get_full_fp32_param(param)
    else:
        whole = safe_get_full_optimizer_state(param, moment)
    return torch.as_tensor(whole).detach().clone()


def _whole(param: nn.Parameter) -> Tensor:
    """Return a frozen parameter, which stage 3 partitions too."""
    if not hasattr(param, "ds_id"):
        return param.detach().float().clone()
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([param]):
        return param.detach().float().clone()


def _set_weight(param: nn.Parameter, value: Tensor) -> None:
    if hasattr(param, "ds_id"):
        from deepspeed.runtime.zero import GatheredParameters

        # Leaving the context with a modifier rank writes the value back into every rank's partition.
        with GatheredParameters([param], modifier_rank=0):
            param.data.copy_(value.reshape(param.shape))
        if param.requires_grad:
            _set_stage3(param, value, None)
        return
    param.data.copy_(value.reshape(param.shape))
    if hasattr(param, "_hp_mapping") and param._hp_mapping is not None:
        mapping = param._hp_mapping
        mapping.get_hp_fragment().copy_(_fragment_of(value, mapping))


def _set_master(param: nn.Parameter, optimizer: Optimizer, moment: str, value: Tensor) -> None:
    if hasattr(param, "ds_id"):
        _set_stage3(param, value, moment)
    elif hasattr(param, "_hp_mapping"):
        mapping = param._hp_mapping
        if mapping is None:  # no part of this parameter lies in this rank's partition
            return
        flat = optimizer.param_groups[mapping.param_group_index]["params"][0]
        place = mapping.hp_fragment_address
        optimizer.state[flat][moment].narrow(0, place.start, place.numel).copy_(_fragment_of(value, mapping))
    else:
        optimizer.state[param][moment].copy_(value.reshape(param.shape))


def _set_stage3(param: Any, value: Tensor, moment: str | None) -> None:
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    length = param.ds_tensor.numel()
    start = length * torch.distributed.get_rank()
    padded = torch.zeros(length, dtype=torch.float32, device=param.ds_tensor.device)
    part = value.flatten()[start : start + length]
    padded[: part.numel()].copy_(part)
    if moment is None:
        safe_set_local_fp32_param(param, padded)
    else:
        safe_set_local_optimizer_state(param, padded, moment)


def _fragment_of(value: Tensor, mapping: Any) -> Tensor:
    place = mapping.lp_fragment_address
    return value.flatten().narrow(0, place.start, place.numel)


def _is_partitioned(param: nn.Parameter) -> bool:
    return hasattr(param, "ds_id") or hasattr(param, "_hp_mapping")


def _create_moments(module: nn.Module, optimizer: Optimizer, steps: int) -> None:
    """Create Adam's state, which torch otherwise makes in the first step; keep tensors that DeepSpeed refers to."""
    for param in _masters(module, optimizer):
        state = optimizer.state[param]
        state["step"] = torch.tensor(float(steps))
        for moment in MOMENTS:
            if moment not in state:
                state[moment] = torch.zeros_like(param.data)


def _masters(module: nn.Module, optimizer: Optimizer) -> Iterator[Tensor]:
    for param in module.parameters():
        if hasattr(param, "_z3_optimizer"):  # stage 3 shows its partitions to the optimizer during a step only
            yield from param._z3_optimizer.fp32_partitioned_groups_flat
            return
    for group in optimizer.param_groups:
        yield from group["params"]
