"""Steps on their way to the device: collated and copied while it still computes the step before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from cellmill.tokens import PackedBatch
from cellmill.training.model import ModelConfig, TorchBatch, describe_backend
from cellmill.training.model.layout import Queries
from cellmill.training.model.moving import Moving, move


class Collator:
    """Makes tensors of the micro-batches of a step, in one pinned buffer that is copied to the device at once.

    Parameters
    ----------
    device
        Where to.
    readout
        Which outputs the model will be asked for; see `CellModel.encode`.
    model
        Its shape, which decides what computes attention there.
    token_modality : int64 [vocabulary], optional
        See `TorchBatch.from_packed`.
    """

    def __init__(
        self,
        device: torch.device,
        readout: Queries,
        model: ModelConfig,
        token_modality: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self._device, self._readout, self._token_modality = device, readout, token_modality
        backend = describe_backend(device, dtype=torch.float32, d_head=model.d_head, attention=model.attention)
        self._kernel = backend.name
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, parts: Sequence[PackedBatch]) -> Moving[TorchBatch]:
        """Return the parts on their way."""
        batches = [TorchBatch.from_packed(part, token_modality=self._token_modality) for part in parts]
        if self._device.type != "cpu":
            for batch in batches:
                batch.prepare(self._readout, self._kernel)
        return move(batches, self._device, self._stream)


class Upcoming:
    """The steps of an epoch, one of which can be made ready ahead of the present one.

    Parameters
    ----------
    steps
        A rank's cells of each step.
    split
        Cuts them into micro-batches.
    collate
        Makes tensors of those.
    """

    def __init__(
        self,
        steps: Iterator[PackedBatch],
        split: Callable[[PackedBatch], Sequence[PackedBatch]],
        collate: Callable[[Sequence[PackedBatch]], Moving[TorchBatch]],
    ) -> None:
        self._made = (collate(split(packed)) for packed in steps)
        self._ahead: Moving[TorchBatch] | None = None

    def prepare(self) -> None:
        """Make the next step ready, if there is one. What the device does meanwhile is not waited for."""
        if self._ahead is None:
            self._ahead = next(self._made, None)

    def take(self) -> list[TorchBatch] | None:
        """Return the micro-batches of the next step; None after the last."""
        self.prepare()
        found, self._ahead = self._ahead, None
        return None if found is None else found.arrive()
