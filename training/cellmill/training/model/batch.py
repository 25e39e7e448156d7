"""A packed batch of tokens as tensors, ready for the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cellmill.errors import IntegrityError
from cellmill.training.model.embedding import MASK_VALUE
from cellmill.training.model.layout import Ints, KernelName, Layout, Queries, ranges
from cellmill.training.model.packed import Array, Packed

# Rows of the table of value embeddings; bin b stands in row FIRST_BIN_ROW + b.
GENERATIVE_ROW, MASK_ROW, CLS_ROW, FIRST_BIN_ROW = 0, 1, 2, 3


@dataclass(frozen=True)
class Label:
    """One integer per cell, -1 where unknown."""

    ids: Tensor
    """int64 ``[cells]``."""
    n_known: int
    largest: int


@dataclass(frozen=True, eq=False)
class TorchBatch:
    """Tokens of some cells on a device.

    Tokens are laid out cell by cell; cells of equal shape stand side by side, so the order of *tokens* may differ
    from that of the packed batch (:meth:`to_packed_order` restores it). Everything that is one *per cell* (labels,
    cell ids, cell embeddings) keeps the order of the packed batch.
    """

    layout: Layout
    genes: Tensor
    """int64 ``[distinct]``: the distinct genes of the batch, ascending."""
    gene_row: Tensor
    """int64 ``[tokens]``: position of each token's gene in `genes`."""
    value_row: Tensor | None
    """int64 ``[tokens]``: row of the table of value embeddings, for binned values."""
    value: Tensor | None
    """float32 ``[tokens]``: input value, for values that are not binned; -1 masked, 0 generative."""
    is_gen: Tensor
    """bool ``[tokens]``."""
    condition: Tensor | None
    """int64 ``[tokens]``; None when no token has a condition."""
    modality: Tensor | None
    """int64 ``[tokens]``."""
    targets: Tensor
    """int64 ``[targets]``: generative and masked tokens."""
    target_value: Tensor
    """float32 ``[targets]``: their true values."""
    target_cell: Tensor
    """int64 ``[targets]``: their cells, in the order of the packed batch."""
    labels: dict[str, Label]
    cell_id: npt.NDArray[np.uint64]
    cls_value: float
    order: Ints | None
    """int64 ``[cells]``: the cell of the packed batch that stands at each place; None if unchanged."""
    cell_place: Tensor | None
    """int64 ``[cells]``: the place of each cell of the packed batch; None if unchanged."""
    place_cell: Tensor | None
    """int64 ``[cells]``: `order` as a tensor."""
    n_masked: int
    largest_gene: int
    largest_bin: int
    largest_condition: int

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.layout.n_cells

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return self.layout.n_tokens

    @property
    def n_targets(self) -> int:
        """Number of tokens whose value is to be predicted."""
        return self.targets.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.gene_row.device

    def queries(self, readout: Queries) -> Queries:
        """Return which tokens the last layer asks for: masked ones are perceptual, and anywhere in their cell."""
        return "all" if readout == "targets" and self.n_masked else readout

    def prepare(self, readout: Queries, kernel: KernelName) -> None:
        """Make all tensors that the model needs for a readout; see `Layout.prepare`."""
        self.layout.prepare(self.queries(readout), kernel)

    def token_cell(self) -> Tensor:
        """Return the cell of each token, int64 ``[tokens]``, in the order of the packed batch."""
        cells = np.arange(self.n_cells) if self.order is None else self.order
        return torch.from_numpy(np.repeat(cells, self.layout.length)).to(self.device)

    def by_cell(self, x: Tensor) -> Tensor:
        """Bring one row per place ``[cells, ...]`` into the order of the packed batch."""
        return x if self.cell_place is None else x[self.cell_place]

    def by_place(self, x: Tensor) -> Tensor:
        """Bring one row per cell of the packed batch ``[cells, ...]`` into the order of places."""
        return x if self.place_cell is None else x[self.place_cell]

    def to_packed_order(self, x: Tensor) -> Tensor:
        """Bring one row per token ``[tokens, ...]`` into the order of the packed batch."""
        if self.order is None:
            return x
        length = self.layout.length
        place = np.empty_like(self.order)
        place[self.order] = np.arange(len(place))
        rows = ranges((np.cumsum(length) - length)[place], length[place])
        return x[torch.from_numpy(rows).to(x.device)]

    @classmethod
    def from_packed(cls, packed: Packed, *, token_modality: Array | None = None) -> TorchBatch:
        """Make tensors of a packed batch, on the CPU; `moving.move` brings them to a device.

        Parameters
        ----------
        packed
            Tokens of each cell: ``<cls>``, perceptual tokens, generative tokens.
        token_modality
            int ``[vocabulary]``: modality of each token. Without it the label ``modality``, if there is one, holds
            for all tokens of a cell.

        Raises
        ------
        IntegrityError
            The channels of the packed batch do not fit together.
        """
        length = np.diff(packed.cu_seqlens).astype(np.int64)
        n_pcpt = packed.n_pcpt.astype(np.int64)
        _check(packed, length, n_pcpt)
        order = _order(length, n_pcpt)
        rows: Ints | None = None
        cells = np.arange(len(length))
        if order is not None:
            cells, starts = order, packed.cu_seqlens[:-1].astype(np.int64)[order]
            length, n_pcpt = length[order], n_pcpt[order]
            rows = ranges(starts, length)

        def take(channel: Array) -> Array:
            return channel if rows is None else channel[rows]

        gene, value, is_gen = take(packed.gene), take(packed.value), take(packed.is_gen)
        masked = None if packed.masked is None else take(packed.masked)
        n_masked = 0 if masked is None else int(np.count_nonzero(masked))
        is_target = is_gen if masked is None or not n_masked else is_gen | masked
        cls_rows = np.cumsum(length) - length
        if masked is not None and masked[cls_rows].any():
            raise _malformed("<cls> is masked")
        targets = np.flatnonzero(is_target)
        genes, gene_row = _distinct(gene)
        binned = value.dtype.kind in "ui"
        condition = None if packed.condition is None else take(packed.condition)
        largest_condition = 0 if condition is None else int(condition.max(initial=0))
        modality = None
        if token_modality is not None:
            modality = token_modality[gene]
        elif "modality" in packed.labels:
            modality = np.repeat(packed.labels["modality"][cells], length)
        place = None
        if order is not None:
            place = np.empty_like(order)
            place[order] = np.arange(len(order))

        def put(array: Array, dtype: npt.DTypeLike = np.int64) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, dtype))

        return cls(
            layout=Layout(length, n_pcpt, torch.device("cpu")),
            genes=put(genes),
            gene_row=put(gene_row),
            value_row=put(_value_rows(value, is_gen, masked, cls_rows)) if binned else None,
            value=None if binned else put(_values(value, is_gen, masked, cls_rows, packed.cls_value), np.float32),
            is_gen=put(is_gen, np.bool_),
            condition=put(condition) if condition is not None and largest_condition else None,
            modality=None if modality is None else put(modality),
            targets=put(targets),
            target_value=put(value[targets], np.float32),
            target_cell=put(np.repeat(cells, length)[targets]),
            labels={name: _label(ids, put(ids)) for name, ids in packed.labels.items()},
            cell_id=packed.cell_id,
            cls_value=float(packed.cls_value),
            order=order,
            cell_place=None if place is None else put(place),
            place_cell=None if order is None else put(order),
            n_masked=n_masked,
            largest_gene=int(genes[-1]) if len(genes) else 0,
            largest_bin=int(value.max(initial=0)) if binned else 0,
            largest_condition=largest_condition,
        )


def _check(packed: Packed, length: Ints, n_pcpt: Ints) -> None:
    n, total = len(length), int(packed.cu_seqlens[-1])
    if len(n_pcpt) != n or len(packed.cell_id) != n or any(len(x) != n for x in packed.labels.values()):
        raise _malformed(f"something is not one per cell ({n} cells)")
    channels = (packed.gene, packed.value, packed.is_gen, packed.condition, packed.masked)
    if any(x is not None and len(x) != total for x in channels):
        raise _malformed(f"a channel does not have {total} tokens")
    if n and (int(n_pcpt.min()) < 1 or bool((n_pcpt > length).any())):
        raise _malformed("a cell has no perceptual token, or more of them than tokens")
    own = length - n_pcpt
    first = packed.cu_seqlens[:-1] + n_pcpt
    if int(np.count_nonzero(packed.is_gen)) != int(own.sum()) or not packed.is_gen[ranges(first, own)].all():
        raise _malformed("generative tokens do not stand last in their cells")


def _malformed(what: str) -> IntegrityError:
    return IntegrityError(
        f"The packed batch is malformed: {what}.", where="packed batch", fix="Make it with the tokeniser."
    )


def _order(length: Ints, n_pcpt: Ints) -> Ints | None:
    order = np.lexsort((n_pcpt, length))
    return None if bool((order[1:] > order[:-1]).all()) else order


def _distinct(gene: Array) -> tuple[Ints, Ints]:
    size = int(gene.max(initial=0)) + 1
    seen = np.zeros(size, np.bool_)
    seen[gene] = True
    genes = np.flatnonzero(seen)
    row = np.empty(size, np.int64)
    row[genes] = np.arange(len(genes))
    return genes, row[gene]


def _value_rows(value: Array, is_gen: Array, masked: Array | None, cls_rows: Ints) -> Ints:
    rows = value.astype(np.int64) + FIRST_BIN_ROW
    rows[is_gen] = GENERATIVE_ROW
    if masked is not None:
        rows[masked & ~is_gen] = MASK_ROW
    rows[cls_rows] = CLS_ROW
    return rows


def _values(value: Array, is_gen: Array, masked: Array | None, cls_rows: Ints, cls_value: float) -> Array:
    values = value.astype(np.float32)
    if masked is not None:
        values[masked] = MASK_VALUE
    # The true value of a generative token is its target and must not reach the model.
    values[is_gen] = 0.0
    values[cls_rows] = cls_value
    return values


def _label(ids: Array, tensor: Tensor) -> Label:
    return Label(ids=tensor, n_known=int(np.count_nonzero(ids >= 0)), largest=int(ids.max(initial=-1)))
