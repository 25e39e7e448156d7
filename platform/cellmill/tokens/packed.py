"""A packed batch: the token channels of some cells, one cell after the other, without padding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.memory import Memory
from cellmill.tokens.counting import mark_generative

Array = npt.NDArray[Any]

_CHANNELS = ("gene", "value", "condition", "masked")
_CELLS = ("cu_seqlens", "n_pcpt", "cell_id")


@dataclass(frozen=True)
class PackedBatch:
    """Tokens of some cells: per cell ``<cls>``, perceptual tokens, generative tokens.

    Attributes
    ----------
    gene : uint16 or uint32 [tokens]
        Token of the gene.
    value : uint8 or float32 [tokens]
        True values, those of generative and masked tokens too; the slot of ``<cls>`` holds 0 and means `cls_value`.
    cu_seqlens : int32 [cells + 1]
        Where cells begin.
    n_pcpt : int32 [cells]
        Perceptual tokens, ``<cls>`` included.
    cell_id : uint64 [cells]
    cls_value
        Value of ``<cls>``.
    condition : uint16 [tokens] or None
        Condition of each token, 0 for none.
    masked : bool [tokens] or None
        Perceptual tokens whose value is hidden.
    labels : int32 [cells] each
        Codes of classes, -1 where unknown.
    """

    gene: Array
    value: Array
    cu_seqlens: npt.NDArray[np.int32]
    n_pcpt: npt.NDArray[np.int32]
    cell_id: npt.NDArray[np.uint64]
    cls_value: float
    condition: Array | None = None
    masked: npt.NDArray[np.bool_] | None = None
    labels: dict[str, npt.NDArray[np.int32]] = field(default_factory=dict)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.cell_id)

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return len(self.gene)

    @cached_property
    def is_gen(self) -> npt.NDArray[np.bool_]:
        """Generative tokens, bool [tokens]: those of a cell after its perceptual ones."""
        marks = np.empty(self.n_tokens, np.bool_)
        mark_generative(self.cu_seqlens, self.n_pcpt, marks)
        return marks

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each cell, int64 [cells]."""
        return np.diff(self.cu_seqlens).astype(np.int64)

    def select(self, cells: npt.NDArray[np.int64]) -> PackedBatch:
        """Return some cells in a given order."""
        lengths = self.lengths[cells]
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
        rows = np.repeat(self.cu_seqlens[:-1][cells] - cu_seqlens[:-1], lengths) + np.arange(cu_seqlens[-1])
        return PackedBatch(
            gene=self.gene[rows],
            value=self.value[rows],
            cu_seqlens=cu_seqlens.astype(np.int32),
            n_pcpt=self.n_pcpt[cells],
            cell_id=self.cell_id[cells],
            cls_value=self.cls_value,
            condition=None if self.condition is None else self.condition[rows],
            masked=None if self.masked is None else self.masked[rows],
            labels={name: codes[cells] for name, codes in self.labels.items()},
        )

    def part(self, first: int, last: int) -> PackedBatch:
        """Return cells `first` up to, not including, `last`, in the same memory."""
        start, stop = self.cu_seqlens[[first, last]].tolist()

        def of(array: Any) -> Any:
            return None if array is None else array[start:stop]

        return PackedBatch(
            **{name: of(getattr(self, name)) for name in _CHANNELS},
            cu_seqlens=self.cu_seqlens[first : last + 1] - start,
            n_pcpt=self.n_pcpt[first:last],
            cell_id=self.cell_id[first:last],
            cls_value=self.cls_value,
            labels={name: codes[first:last] for name, codes in self.labels.items()},
        )

    @staticmethod
    def concatenate(batches: Sequence[PackedBatch], memory: Memory | None = None) -> PackedBatch:
        """Put batches of one tokeniser one after the other; what lies so already is not copied.

        Parameters
        ----------
        batches
            At least one.
        memory
            Where the tokens are to be; by default in new memory.
        """
        first, memory = batches[0], memory or Memory()

        def join(name: str) -> Any:
            if getattr(first, name) is None:
                return None
            parts = [getattr(batch, name) for batch in batches]
            joined = adjoining(parts)
            if joined is None:
                joined = memory.empty(sum(map(len, parts)), np.result_type(*parts))
                np.concatenate(parts, out=joined)
            return joined

        cu_seqlens = np.zeros(sum(batch.n_cells for batch in batches) + 1, np.int32)
        np.cumsum(np.concatenate([np.diff(batch.cu_seqlens) for batch in batches]), out=cu_seqlens[1:])
        return PackedBatch(
            **{name: join(name) for name in _CHANNELS},
            cu_seqlens=cu_seqlens,
            n_pcpt=np.concatenate([batch.n_pcpt for batch in batches]),
            cell_id=np.concatenate([batch.cell_id for batch in batches]),
            cls_value=first.cls_value,
            labels={name: np.concatenate([batch.labels[name] for batch in batches]) for name in first.labels},
        )

    def to_table(self) -> pa.Table:
        """Return the batch as one row of binary columns that share its memory."""
        arrays = {name: getattr(self, name) for name in (*_CHANNELS, *_CELLS) if getattr(self, name) is not None}
        arrays |= {f"label:{name}": codes for name, codes in self.labels.items()}
        head = {"cls_value": self.cls_value, "dtypes": {name: array.dtype.str for name, array in arrays.items()}}
        columns = {name: _binary(np.ascontiguousarray(array)) for name, array in arrays.items()}
        return pa.table({"head": pa.array([json.dumps(head)]), **columns})

    @classmethod
    def from_table(cls, table: pa.Table) -> PackedBatch:
        """Read a batch from a row of `to_table`, as read-only views of its memory."""
        head = json.loads(table["head"][0].as_py())
        arrays = {name: _view(table[name], dtype) for name, dtype in head["dtypes"].items()}
        labels = {name.removeprefix("label:"): arrays.pop(name) for name in list(arrays) if name.startswith("label:")}
        return cls(**arrays, cls_value=head["cls_value"], labels=labels)


def adjoining(parts: Sequence[Array]) -> Array | None:
    """Return arrays of one type as one, without a copy, where each begins at the end of the one before it."""
    base, begin = parts[0].base, _address(parts[0])
    end = begin
    for part in parts:
        if part.base is not base or _address(part) != end or part.dtype != parts[0].dtype:
            return None
        end += part.nbytes
    if not isinstance(base, np.ndarray):
        return None
    return np.ndarray(sum(map(len, parts)), parts[0].dtype, base, begin - _address(base))


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _binary(array: Array) -> pa.Array:
    offsets = pa.py_buffer(np.array([0, array.nbytes], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(array)])


def _view(column: pa.ChunkedArray, dtype: str) -> Array:
    chunk = column.chunk(0)
    start, stop = np.frombuffer(chunk.buffers()[1], np.int64, count=2, offset=8 * chunk.offset)
    kind = np.dtype(dtype)
    if stop == start:
        return np.empty(0, kind)
    return np.frombuffer(chunk.buffers()[2], kind, count=(stop - start) // kind.itemsize, offset=start)
