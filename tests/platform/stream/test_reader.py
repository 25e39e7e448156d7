"""Rows go straight to their places in a block: any rows, in any order, several times; against a gather of all."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellmill.atlas import Atlas, open_shard
from cellmill.memory import Memory
from cellmill.stream.cells import Reading, RowRuns
from cellmill.stream.reader import read_block

MEMORY = Memory()


def rows_of(runs: RowRuns) -> list[int]:
    return [row for a, b in zip(runs.starts.tolist(), runs.stops.tolist(), strict=True) for row in range(a, b)]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_rows_in_any_order_and_any_number(stream_atlas: Atlas, data: st.DataObject) -> None:
    shards, expected = [], []
    for entry in stream_atlas.snapshot().shards:
        cuts = data.draw(st.lists(st.integers(0, entry.n_rows), max_size=8, unique=True).map(sorted))
        cuts = cuts[: len(cuts) // 2 * 2]
        runs = RowRuns(entry, np.array(cuts[::2], np.int64), np.array(cuts[1::2], np.int64))
        shards.append(runs)
        shard = open_shard(stream_atlas.storage, entry)
        columns, counts, indptr = shard.gather([0], [entry.n_rows])
        for row in rows_of(runs):
            place = slice(indptr[row], indptr[row + 1])
            expected.append((shard.tokens[columns[place]].tolist(), counts[place].tolist()))
    n = len(expected)
    label = np.arange(n, dtype=np.int32)[::-1].copy()
    reading = Reading(stream_atlas.storage, tuple(shards), np.arange(n, dtype=np.uint64) + 7, {"label": label})
    cells: Any = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=300) if n else st.just([])), np.int64)
    for chosen in (cells, None):
        block = read_block(reading, chosen, memory=MEMORY)
        wanted = range(n) if chosen is None else chosen.tolist()
        found = [
            (block.token[a:b].tolist(), block.count[a:b].tolist())
            for a, b in zip(block.indptr[:-1], block.indptr[1:], strict=True)
        ]
        assert found == [expected[cell] for cell in wanted]
        assert block.cell_id.tolist() == [cell + 7 for cell in wanted]
        assert block.labels["label"].tolist() == [n - 1 - cell for cell in wanted]
        measured = [block.measured[i] for i in block.measured_set.tolist()]
        for tokens, (genes, _) in zip(measured, found, strict=True):
            assert np.isin(genes, tokens).all()
