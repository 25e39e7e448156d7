"""The staged blocks of a shard as one sequence of cells, in bounded memory.

Each block is in the order of ranks, so that the cells of any range of ranks are neighbours in every block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.atlas.layout import count_dtype
from cellmill.ingestion.counts import move_rows, ranges
from cellmill.ingestion.staging import StagedBlock, damaged

I64 = npt.NDArray[np.int64]
_ENTRIES_AT_ONCE = 1 << 20


class Merged:
    """Blocks of one shard, merged.

    Parameters
    ----------
    blocks
        At least one.

    Attributes
    ----------
    cells
        Metadata of all cells, in their final order.
    indptr : int64 [n + 1]
        Where each cell's entries begin.
    largest
        The largest count.
    """

    def __init__(self, blocks: Sequence[StagedBlock]) -> None:
        self._blocks = blocks
        self._rank = np.concatenate([block.rank for block in blocks])
        self._order = np.argsort(self._rank, kind="stable")
        lengths = np.concatenate([block.lengths for block in blocks])[self._order]
        self.indptr: I64 = np.concatenate([[0], np.cumsum(lengths)])
        cells = pa.concat_tables([block.cells for block in blocks], promote_options="permissive")
        self.cells: pa.Table = cells.take(pa.array(self._order))
        self.largest = max(block.largest for block in blocks)

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
        blocks = self._blocks
        position = np.zeros(len(blocks), np.int64)
        starts = [np.concatenate([[0], np.cumsum(block.lengths)]) for block in blocks]
        first_row = np.cumsum([0, *(block.rank.size for block in blocks)])
        checksums = [(0, 0)] * len(blocks)
        for start, stop in ranges(self.indptr[1:], _ENTRIES_AT_ONCE):
            order = self._order[start:stop]
            n = int(self.indptr[stop] - self.indptr[start])
            pieces = np.empty(n, blocks[0].index_dtype), np.empty(n, count_dtype(self.largest))
            source = np.empty(order.size, np.int64)
            owner = np.searchsorted(first_row, order, side="right") - 1
            taken = np.bincount(owner, minlength=len(blocks))
            at = 0
            for number in np.flatnonzero(taken).tolist():
                block, begin = blocks[number], int(position[number])
                end = begin + int(taken[number])
                first, last = int(starts[number][begin]), int(starts[number][end])
                found = block.entries(first, last)
                kinds = block.index_dtype, block.count_dtype
                for piece, content, kind in zip(pieces, found, kinds, strict=True):
                    piece[at : at + last - first] = np.frombuffer(content, kind)
                old = checksums[number]
                checksums[number] = google_crc32c.extend(old[0], found[0]), google_crc32c.extend(old[1], found[1])
                mine = np.flatnonzero(owner == number)
                source[mine] = starts[number][order[mine] - first_row[number]] - first + at
                position[number], at = end, at + last - first
            yield self._ordered(pieces, source, start, stop)
        for block, found_sums in zip(blocks, checksums, strict=True):
            if block.checksums != found_sums:
                raise damaged(block.storage, block.key)

    def _ordered(
        self, pieces: tuple[npt.NDArray[Any], npt.NDArray[Any]], source: I64, start: int, stop: int
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return entries of rows ``[start, stop)`` in order; `source` says where each row is in the pieces."""
        begins = self.indptr[start : stop + 1] - self.indptr[start]
        return _moved(pieces[0], source, begins), _moved(pieces[1], source, begins)


def _moved(values: npt.NDArray[Any], source: I64, begins: I64) -> npt.NDArray[Any]:
    out = np.empty_like(values)
    move_rows(values, source, begins, out)
    return out
