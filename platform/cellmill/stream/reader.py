"""Reading a group: runs of rows out of shards, brought into the order of the plan, and tokenised."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from cellmill.atlas import Atlas, Shard, ShardEntry, open_shard
from cellmill.stream.groups import Group, ShardRead
from cellmill.tokens import CellBlock, PackedBatch, Tokeniser

_OPEN_SHARDS = 64
_NO_CELLS = np.zeros(0, np.uint64)


class GroupReader:
    """Reads groups in any process.

    Parameters
    ----------
    atlas
        URL of the atlas.
    tokeniser
        Makes tokens.
    seed
        Of all chance in tokens.
    """

    def __init__(self, atlas: str, tokeniser: Tokeniser, seed: int) -> None:
        self.atlas, self.tokeniser, self.seed = atlas, tokeniser, seed

    def read(self, group: Group) -> PackedBatch:
        """Read a group.

        Raises
        ------
        IntegrityError
            A shard is missing or damaged; the message names it.
        """
        blocks = [self._block(read) for read in group.reads]
        whole = _concatenate(blocks)
        order = np.empty(whole.n_cells, np.int64)
        order[np.concatenate([read.place for read in group.reads])] = np.arange(whole.n_cells)
        return self.tokeniser.tokenise(whole.take(order), seed=self.seed, epoch=group.epoch)

    def empty(self, labels: dict[str, npt.NDArray[np.int32]]) -> PackedBatch:
        """Return a batch without cells."""
        none = CellBlock(np.zeros(0, np.uint16), np.zeros(0, np.uint8), np.zeros(1, np.int64), _NO_CELLS, labels)
        return self.tokeniser.tokenise(none, seed=self.seed, epoch=0)

    def _block(self, read: ShardRead) -> CellBlock:
        shard, cell_id = _open(self.atlas, read.entry)
        starts, stops = runs(read.rows)
        columns, counts, indptr = shard.gather(starts, stops)
        tokens = shard.tokens.astype(np.uint16) if shard.tokens.max(initial=0) < 1 << 16 else shard.tokens
        return CellBlock(tokens[columns], counts, indptr, cell_id[read.rows], read.labels)


def runs(rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return ascending rows as runs ``[start, stop)`` of neighbours."""
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    first = np.concatenate([[0], cuts]).astype(np.int64)
    last = np.concatenate([cuts, [len(rows)]]).astype(np.int64)
    return rows[first], rows[last - 1] + 1


@lru_cache(maxsize=_OPEN_SHARDS)
def _open(atlas: str, entry: ShardEntry) -> tuple[Shard, npt.NDArray[np.uint64]]:
    opened = Atlas.open(atlas)
    cells = opened.snapshot().cells_file(entry).read(["cell_id"])
    return open_shard(opened.storage, entry), cells["cell_id"].to_numpy()


def _concatenate(blocks: list[CellBlock]) -> CellBlock:
    if len(blocks) == 1:
        return blocks[0]
    ends = np.cumsum([block.indptr[-1] for block in blocks])
    shifted = [block.indptr[1:] + end - block.indptr[-1] for block, end in zip(blocks, ends, strict=True)]
    return CellBlock(
        token=np.concatenate([block.token for block in blocks]),
        count=np.concatenate([block.count for block in blocks]),
        indptr=np.concatenate([np.zeros(1, np.int64), *shifted]),
        cell_id=np.concatenate([block.cell_id for block in blocks]),
        labels={name: np.concatenate([block.labels[name] for block in blocks]) for name in blocks[0].labels},
    )
