"""The rows of Cellmill, in a process of its own: ``python -m benchmarks.stream_rows KIND FOLDER BATCH_SIZE NAMES``.

`FOLDER` holds the atlases ``zarr``, ``arrow``, ``linked2``, ``linked3`` and ``wide``, `KIND` is ``local`` or ``ray``.
See `benchmarks.turns`.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
from benchmarks.turns import Row, take_turns

from cellmill.atlas import Atlas
from cellmill.cluster import ClusterConfig, connect
from cellmill.stream import Stream, StreamConfig
from cellmill.tokens import RawCounts, TokenConfig, Tokeniser

_COPIED_AT_ONCE = 1 << 24


def tokeniser(name: str) -> Tokeniser:
    """Return what makes the cells of a row: raw counts, tokens, or tokens with prompts."""
    ratios = (0.25, 0.5, 0.75) if name == "prompts" else ()
    return RawCounts() if name == "raw" else Tokeniser(TokenConfig(n_bins=51, max_genes=1200, prompt_ratios=ratios))


def consume(stream: Stream, epoch: int) -> int:
    """Take every batch of an epoch."""
    return sum(batch.n_cells for batch in stream.epoch(epoch))


def copy(atlas: Atlas, _: int) -> int:
    """Copy as many bytes as the counts have with 16 bits a gene and 8 bits a count."""
    shards = atlas.snapshot().shards
    left = 3 * sum(entry.nnz for entry in shards)
    source = np.ones(_COPIED_AT_ONCE, np.uint8)
    target = np.empty_like(source)
    while left > 0:
        np.copyto(target[:left], source[:left])
        left -= source.size
    return sum(entry.n_cells for entry in shards)


def row(folder: Path, backend: str, name: str, batch_size: int) -> Row:
    """Return a row by its name: what is made, and from which atlas."""
    what, _, layout = name.partition("-")
    atlas = Atlas.open(folder / (layout or "zarr"))
    if what == "floor":
        return partial(copy, atlas)
    # Raw counts are larger than tokens, so that less of them is made ahead.
    ahead = 1 if what == "raw" else 2
    config = StreamConfig.model_validate({"batch_size": batch_size, "backend": backend, "prefetch": ahead})
    return partial(consume, Stream(atlas.snapshot().select(), tokeniser(what), config))


def main() -> None:
    """Take turns."""
    kind, folder, batch_size, *names = sys.argv[1:]
    if kind == "ray":
        connect(ClusterConfig(address="local", object_store_mb=1500))
    take_turns({name: row(Path(folder), kind, name, int(batch_size)) for name in names}, tree=kind == "ray")


if __name__ == "__main__":
    main()
