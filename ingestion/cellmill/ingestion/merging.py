"""The blocks of a shard as one sequence of cells, in bounded memory.

Each block is in the order of ranks, so that the cells of any range of ranks are neighbours in every block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.atlas.layout import count_dtype, index_dtype
from cellmill.ingestion.packing import PackedCells, ranges, unpack
from cellmill.ingestion.staging import StagedBlock

I64 = npt.NDArray[np.int64]
_BYTES_AT_ONCE = 1 << 22
"""Of packed cells: from each block some cells are read at once."""
_ENTRIES_AT_ONCE = 1 << 19


class Merged:
    """Blocks of one shard, merged.

    Parameters
    ----------
    blocks
        At least one.
    n_features
        How many features there are.

    Attributes
    ----------
    cells
        Metadata of all cells, in their final order.
    indptr : int64 [n + 1]
        Where each cell's entries begin.
    largest
        The largest count.
    """

    def __init__(self, blocks: Sequence[StagedBlock], n_features: int) -> None:
        self._blocks = blocks
        self._order = np.argsort(np.concatenate([block.rank for block in blocks]), kind="stable")
        self._lengths = np.concatenate([block.lengths for block in blocks])[self._order]
        self._sizes = np.concatenate([block.sizes for block in blocks])[self._order]
        self.indptr: I64 = np.concatenate([[0], np.cumsum(self._lengths)])
        cells = pa.concat_tables([block.cells for block in blocks], promote_options="permissive")
        self.cells: pa.Table = cells.take(pa.array(self._order))
        self.largest = max(block.largest for block in blocks)
        self._dtypes = index_dtype(n_features), count_dtype(self.largest)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.indptr.size - 1

    def entries(self) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        """Yield the features and the counts of all entries, some cells at a time.

        Raises
        ------
        IntegrityError
            A block is not as it was written; only known when all was read.
        """
        first_row = np.cumsum([0, *(block.rank.size for block in self._blocks)])
        position = np.zeros(len(self._blocks), np.int64)
        checksums = [0] * len(self._blocks)
        ends = np.cumsum(self._sizes)
        content = np.empty(min(int(ends[-1]), max(_BYTES_AT_ONCE, int(self._sizes.max()))), np.uint8)
        sound = True
        for start, stop in ranges(ends, _BYTES_AT_ONCE):
            owner = np.searchsorted(first_row, self._order[start:stop], side="right") - 1
            sizes = self._sizes[start:stop]
            starts = np.empty(stop - start, np.int64)
            at = 0
            for number in np.unique(owner).tolist():
                mine = np.flatnonzero(owner == number)
                size, begin = int(sizes[mine].sum()), int(position[number])
                position[number] += mine.size
                out = content[at : at + size]
                checksums[number] = self._blocks[number].load(begin, begin + mine.size, out, checksums[number])
                starts[mine] = at + np.cumsum(sizes[mine]) - sizes[mine]
                at += size
            here = PackedCells(content, starts, sizes, self._lengths[start:stop])
            for a, b in ranges(self.indptr[start + 1 : stop + 1] - self.indptr[start], _ENTRIES_AT_ONCE):
                n = int(self.indptr[start + b] - self.indptr[start + a])
                features, counts = np.empty(n, self._dtypes[0]), np.empty(n, self._dtypes[1])
                sound = sound and unpack(here.take(slice(a, b)), features, counts)
                if sound:
                    yield features, counts
        for block, found in zip(self._blocks, checksums, strict=True):
            if block.checksum != found:
                raise block.damaged()
