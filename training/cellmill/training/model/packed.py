"""What the model needs of a packed batch; the tokeniser's own class offers it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy.typing as npt

Array = npt.NDArray[Any]


class Packed(Protocol):
    """Token channels of some cells: per cell ``<cls>``, perceptual tokens, generative tokens."""

    @property
    def gene(self) -> Array:
        """Unsigned ``[tokens]``: token of the gene."""

    @property
    def value(self) -> Array:
        """Unsigned bins or float32 ``[tokens]``: true values, of generative and masked tokens too."""

    @property
    def condition(self) -> Array | None:
        """Unsigned ``[tokens]``: condition, 0 for none."""

    @property
    def is_gen(self) -> Array:
        """Bool ``[tokens]``: generative tokens."""

    @property
    def masked(self) -> Array | None:
        """Bool ``[tokens]``: perceptual tokens whose value is hidden."""

    @property
    def cu_seqlens(self) -> Array:
        """Int32 ``[cells + 1]``: where cells begin."""

    @property
    def n_pcpt(self) -> Array:
        """Int32 ``[cells]``: perceptual tokens, ``<cls>`` included."""

    @property
    def cell_id(self) -> Array:
        """Uint64 ``[cells]``."""

    @property
    def labels(self) -> Mapping[str, Array]:
        """Int32 ``[cells]`` each, -1 where unknown."""

    @property
    def cls_value(self) -> float:
        """Value of ``<cls>``; its slot in the value channel is not read."""
