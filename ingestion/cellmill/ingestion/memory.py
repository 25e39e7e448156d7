"""How much a task reads, so that it stays within its memory; what cannot be kept within it is refused."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellmill.errors import ResourceError
from cellmill.ingestion.packing import MOST_BYTES
from cellmill.ingestion.sources.base import Source
from cellmill.ingestion.sources.holding import RAW_BYTES, SHARE, bounded, refuse_long
from cellmill.ingestion.sources.starts import Starts, longest

_LOOKS, _LOOK_CELLS = 16, 32
_ENTRY_BYTES = MOST_BYTES
"""Of a harmonised entry at most; of nearly all two."""
_CELL_BYTES = 4096
"""Of a cell's metadata at least: columns of obs as text, and as Arrow."""
_TEXT_COPIES = 4
"""Of the text of a cell's columns while they are read or written: Python's, Arrow's, in another order, as Parquet."""
_MOST_AT_ONCE = 1 << 19
"""More is slower: it leaves the processor's cache before all is done with it."""
_MOST_CELLS = 1 << 15
"""Of a chunk: smaller chunks leave more tasks to share out."""
_CHUNK_SHARE = 0.5
"""Of the memory; the rest is for what is raw, and for what is not proportional to cells."""


def entries_at_once(megabytes: float) -> int:
    """Return how many raw values a task holds at a time."""
    return max(1, min(_MOST_AT_ONCE, int(megabytes * 1e6 * SHARE / RAW_BYTES)))


@dataclass(frozen=True)
class Text:
    """How many bytes the columns of a cell have as text, with their index.

    Attributes
    ----------
    mean
        On average over all cells: a shard has its cells from everywhere.
    most
        On average over those neighbours that have most: a chunk is made of neighbours.
    """

    mean: float
    most: float


def text_of(source: Source, columns: Sequence[str]) -> Text:
    """Look at some neighbours in many places, for files are often sorted by what their columns say."""
    n = source.n_cells
    size = min(n, _LOOK_CELLS)
    starts = sorted({(n - size) * look // (_LOOKS - 1) for look in range(_LOOKS)}) if size else []
    found = [_text_bytes(source.obs(columns, start, start + size)) for start in starts]
    return Text(float(np.mean(found)), max(found)) if found else Text(0.0, 0.0)


def _text_bytes(obs: pd.DataFrame) -> float:
    columns: list[Iterable[object]] = [obs.index, *(obs[name] for name in obs.columns)]
    lengths = [[len(str(value).encode("utf-8", "replace")) + 4 for value in column] for column in columns]
    return float(np.sum(lengths)) / len(obs)


def refuse_wide(text: float, shard_cells: int, megabytes: float, where: str) -> None:
    """Refuse cells whose metadata does not fit into a task that writes a shard of so many.

    Raises
    ------
    ResourceError
        It does not.
    """
    needed = text * _TEXT_COPIES * shard_cells / 1e6
    if needed > megabytes:
        most = max(1, int(megabytes * 1e6 / (text * _TEXT_COPIES)))
        raise ResourceError(
            f"The kept columns of obs have {text:,.0f} bytes a cell: a shard of {shard_cells:,} cells needs "
            f"{needed:,.0f} MB, and `task_memory_mb` is {megabytes:,.0f}.",
            where=where,
            fix=f"Set `shard_cells` to {most:,} or less, keep fewer columns, or raise `task_memory_mb`.",
        )


def refuse_blocks(blocks: Mapping[str, int], megabytes: float, where: str) -> None:
    """Refuse arrays whose chunks do not fit into a task.

    Parameters
    ----------
    blocks
        Bytes that are decoded as a whole, by what they are.

    Raises
    ------
    ResourceError
        One is larger.
    """
    for name, size in blocks.items():
        if size > megabytes * 1e6 * SHARE:
            raise ResourceError(
                f"{name} takes {size / 1e6:,.0f} MB at once; `task_memory_mb` is {megabytes:,.0f}.",
                where=where,
                fix=f"Raise `task_memory_mb` to {size / 1e6 / SHARE:,.0f}, or write the data again with smaller "
                "chunks (of Parquet: groups of fewer rows).",
            )


def refuse_long_cells(starts: Starts, megabytes: float, where: str) -> None:
    """Refuse cells of which one has more values than a task has memory for, whatever little they take in the file.

    Raises
    ------
    ResourceError
        There is one.
    """
    cell, values = longest(starts)
    with bounded(megabytes):
        refuse_long(values, f"{where}, cell {cell}")


def chunks_of(starts: Starts, megabytes: float, text: float = 0.0) -> tuple[tuple[int, int], ...]:
    """Return ranges of cells whose harmonised counts and metadata fit into a task's memory.

    Parameters
    ----------
    starts : int64 [n_cells + 1]
        Where the values of each cell begin.
    megabytes
        Memory of a task.
    text
        Bytes of a cell's columns as text.
    """
    limit = int(megabytes * 1e6 * _CHUNK_SHARE)
    each = max(_CELL_BYTES, int(text * _TEXT_COPIES), limit // _MOST_CELLS)

    def weight(rows: int) -> int:
        return int(starts[rows]) * _ENTRY_BYTES + rows * each

    # Cells are as many as there are: nothing is reckoned of all of them.
    n, start, found = starts.size - 1, 0, []
    while start < n:
        stop = max(start + 1, bisect_right(range(n + 1), weight(start) + limit, lo=start, key=weight) - 1)
        found.append((start, stop))
        start = stop
    return tuple(found)
