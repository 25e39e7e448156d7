"""Conditions of tokens through the stream: a label of the cells tells them."""

from __future__ import annotations

import numpy as np

from cellmill.atlas import Atlas
from cellmill.stream import Stream, StreamConfig
from cellmill.tokens import Conditions, PackedBatch, TokenConfig, Tokeniser


def test_they_travel_through_the_stream(stream_atlas: Atlas) -> None:
    tokeniser = Tokeniser(TokenConfig(max_genes=12), conditions=Conditions.of("kind", [4, 5], [[(9, 7)], []]))
    stream = Stream(
        stream_atlas.snapshot().select(),
        tokeniser,
        StreamConfig(batch_size=32, lanes=8, group_cells=100),
        labels={"kind": ("kind", ["A", "C"])},
    )
    whole = PackedBatch.concatenate(list(stream.epoch(0)))
    assert whole.condition is not None
    kinds = np.repeat(whole.labels["kind"], whole.lengths)
    expected = np.select([(kinds == 0) & (whole.gene == 9), kinds == 0, kinds == 1], [7, 4, 5], 0)
    assert set(expected.tolist()) == {0, 4, 5, 7}
    assert (whole.condition == expected).all()
    assert PackedBatch.from_table(whole.to_table()).condition is not None
