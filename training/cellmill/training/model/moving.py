"""Moving many tensors to a device at once: one pinned buffer, one copy that waits for nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_ALIGNMENT = 64


class Movable:
    """An object whose attributes hold tensors, or devices, that move with it."""


@dataclass(frozen=True)
class Moving(Generic[T]):
    """Things on their way to a device.

    Attributes
    ----------
    things
        Their tensors are views of `buffer`.
    buffer : uint8 [bytes] or None
        Where the tensors are; None where nothing had to move.
    copied
        Recorded after the copy; None where there was none to wait for.
    """

    things: list[T]
    buffer: Tensor | None = None
    copied: torch.cuda.Event | None = None

    def arrive(self) -> list[T]:
        """Return the things, for work on the device's current stream, which waits for the copy; the host does not."""
        if self.buffer is not None and self.copied is not None:
            stream = torch.cuda.current_stream(self.buffer.device)
            stream.wait_event(self.copied)
            self.buffer.record_stream(stream)
        return self.things


def move(things: Sequence[T], device: torch.device, stream: torch.cuda.Stream | None = None) -> Moving[T]:
    """Start to move things from the CPU to a device.

    Parameters
    ----------
    things
        Dataclasses, containers and `Movable` objects, with tensors on the CPU.
    device
        Where to; for the CPU nothing is done.
    stream
        CUDA stream of the copy, so that it goes on beside what the current stream computes.
    """
    if device.type == "cpu":
        return Moving(list(things))
    tensors: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    for thing in things:
        _rebuilt(thing, note, device)
    starts, size = [], 0
    for tensor in tensors:
        starts.append(size)
        size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    host = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for start, tensor in zip(starts, tensors, strict=True):
        _view(host, start, tensor).copy_(tensor)
    if stream is None:
        buffer, copied = copy_to(host, device), None
    else:
        with torch.cuda.stream(stream):
            buffer = copy_to(host, device)
            copied = stream.record_event()
    moved: Iterator[Tensor] = (_view(buffer, start, tensor) for start, tensor in zip(starts, tensors, strict=True))
    return Moving([_rebuilt(thing, lambda _: next(moved), device) for thing in things], buffer, copied)


def copy_to(host: Tensor, device: torch.device) -> Tensor:
    """Copy a buffer to a device; from pinned memory the host does not wait."""
    return host.to(device, non_blocking=True)


def _view(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    return buffer[start : start + like.nbytes].view(like.dtype).view(like.shape)


def _rebuilt(thing: Any, change: Callable[[Tensor], Tensor], device: torch.device) -> Any:
    """Return a thing with every tensor in it changed, in a fixed order, and with its devices replaced."""
    if isinstance(thing, Tensor):
        return change(thing)
    if isinstance(thing, torch.device):
        return device
    if isinstance(thing, dict):
        return {key: _rebuilt(value, change, device) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return type(thing)(_rebuilt(value, change, device) for value in thing)
    if isinstance(thing, Movable):
        made = copy(thing)
        made.__dict__.update(_rebuilt(vars(thing), change, device))
        return made
    if is_dataclass(thing) and not isinstance(thing, type):
        names = [item.name for item in fields(thing)]
        return replace(thing, **{name: _rebuilt(getattr(thing, name), change, device) for name in names})
    return thing
