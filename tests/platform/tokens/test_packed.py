"""Packed batches: parts, wholes, and the way through Arrow."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa

from cellmill.tokens import PackedBatch, TokenConfig, Tokeniser
from tests.platform.tokens.builders import random_block


def packed_batch(**changes: object) -> PackedBatch:
    config = TokenConfig.model_validate({"max_genes": 20, **changes})
    packed = Tokeniser(config).tokenise(random_block(30, 80), seed=0, epoch=0)
    packed.labels["kind"] = np.arange(30, dtype=np.int32)
    return packed


def same(one: PackedBatch, other: PackedBatch) -> None:
    for name in ("gene", "value", "cu_seqlens", "n_pcpt", "cell_id", "is_gen"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype
        assert (a == b).all()
    assert (one.masked is None) == (other.masked is None)
    if one.masked is not None and other.masked is not None:
        assert (one.masked == other.masked).all()
    assert one.labels.keys() == other.labels.keys()
    assert all((one.labels[name] == other.labels[name]).all() for name in one.labels)
    assert one.cls_value == other.cls_value


def test_parts_put_together_are_the_whole() -> None:
    for whole in (packed_batch(prompt_ratios=(0.5,)), packed_batch(mask_ratio=0.3), packed_batch(value="log1p")):
        cuts = [0, 7, 7, 20, 30]
        parts = [whole.part(*cells) for cells in pairwise(cuts)]
        same(PackedBatch.concatenate(parts), whole)
        same(PackedBatch.concatenate([whole.select(np.arange(*cells)) for cells in pairwise(cuts)]), whole)
        order = np.random.default_rng(0).permutation(30)
        same(whole.select(order).select(np.argsort(order)), whole)
        same(whole.select(np.arange(7, 20)), whole.part(7, 20))


def test_through_arrow_without_a_copy() -> None:
    whole = packed_batch(mask_ratio=0.3)
    table = whole.to_table()
    assert table.num_rows == 1
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    buffer = sink.getvalue()
    found = PackedBatch.from_table(pa.ipc.open_stream(buffer).read_all())
    same(found, whole)
    inside = range(buffer.address, buffer.address + buffer.size)
    assert found.gene.__array_interface__["data"][0] in inside
    empty = whole.part(3, 3)
    same(PackedBatch.from_table(empty.to_table()), empty)
