"""Files that a stranger made to do harm: links out, external storage, pickles, bombs, lies about sizes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest

from cellmill.errors import CellmillError, RequestError
from cellmill.serving.bodies.h5ad import read_h5ad
from cellmill.serving.bodies.parser import BodyParser
from cellmill.serving.config import LimitsConfig
from cellmill.serving.errors import InvalidBodyError, SlowBodyError, TooLargeError
from tests.serving.samples import GENES, adata, h5ad

LIMITS = LimitsConfig(max_cells=1000, max_values=1_000_000, parser_memory_mb=256)


def edited(edit: Callable[[Any], None]) -> bytes:
    sink = BytesIO(h5ad(adata()))
    with h5py.File(sink, "r+") as file:
        edit(file)
    return sink.getvalue()


def replace(file: Any, path: str, make: Callable[[Any, str], None]) -> None:
    parent, _, name = path.rpartition("/")
    group = file[parent] if parent else file
    attributes = dict(group[name].attrs)
    del group[name]
    make(group, name)
    group[name].attrs.update(attributes)


def test_links_lead_nowhere(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as secret:
        secret["data"] = np.ones(3)

    def external(file: Any) -> None:
        del file["X/data"]
        file["X/data"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "data")

    def soft(file: Any) -> None:
        del file["X/data"]
        file["X/data"] = h5py.SoftLink("/X/indices")

    for edit in (external, soft):
        with pytest.raises(InvalidBodyError, match="Links are not followed"):
            read_h5ad(edited(edit), LIMITS)


def test_data_outside_of_the_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(8 * 1000))

    def external(group: Any, name: str) -> None:
        group.create_dataset(name, (100,), "f8", external=[(str(tmp_path / "secret"), 0, 800)])

    def virtual(group: Any, name: str) -> None:
        layout = h5py.VirtualLayout((100,), "f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (100,))
        group.create_virtual_dataset(name, layout)

    for make in (external, virtual):
        with pytest.raises(InvalidBodyError, match="outside of the file"):
            read_h5ad(edited(partial(replace, path="X/data", make=make)), LIMITS)


def test_objects_are_never_read() -> None:
    def objects(group: Any, name: str) -> None:
        group.create_dataset(name, (3,), dtype=h5py.vlen_dtype(np.uint8))

    with pytest.raises(InvalidBodyError, match="object arrays are never read"):
        read_h5ad(edited(lambda file: replace(file, "X/data", objects)), LIMITS)
    with pytest.raises(InvalidBodyError, match="object arrays are never read"):
        read_h5ad(edited(lambda file: replace(file, "var/_index", objects)), LIMITS)


def test_claimed_sizes_are_refused_before_they_are_read() -> None:
    def claim(group: Any, name: str) -> None:
        group.create_dataset(name, (10**12,), "f8", chunks=(1 << 16,), compression="gzip")

    with pytest.raises(TooLargeError, match="claims 1,000,000,000,000 values"):
        read_h5ad(edited(lambda file: replace(file, "X/data", claim)), LIMITS)

    def rows(group: Any, name: str) -> None:
        group.create_dataset(name, (10**9,), h5py.string_dtype(), chunks=(1 << 16,))

    with pytest.raises(TooLargeError, match=r"shape \(1000000000,\)"):
        read_h5ad(edited(lambda file: replace(file, "obs/_index", rows)), LIMITS)


@pytest.fixture(scope="module")
def parser() -> Iterator[BodyParser]:
    parser = BodyParser(LIMITS)
    yield parser
    parser.close()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_child_reads_what_is_right(parser: BodyParser) -> None:
    cells = parser.read_now("h5ad", h5ad(adata()))
    assert cells.genes == tuple(GENES)
    with pytest.raises(CellmillError) as caught:
        parser.read_now("json", b"{}")
    assert caught.value.http_status == 422


def test_a_bomb_ends_the_child_alone(parser: BodyParser) -> None:
    """A name of 32 MB, meant a thousand times by references to one heap object, and a vast chunk of zeros."""
    before = resident()

    def chunk(group: Any, name: str) -> None:
        group.create_dataset(name, (900_000,), "f8", chunks=(900_000,), compression="gzip", data=np.zeros(900_000))

    with pytest.raises(CellmillError) as caught:
        parser.read_now("h5ad", edited(lambda file: replace(file, "X/data", chunk)))
    assert 400 <= caught.value.http_status < 500

    def name(group: Any, name: str) -> None:
        group.create_dataset(name, data=["x" * (64 << 20)] * 7, dtype=h5py.string_dtype())

    body = edited(lambda file: replace(file, "obs/_index", name))
    with pytest.raises(CellmillError) as caught:
        parser.read_now("h5ad", body)
    assert 400 <= caught.value.http_status < 500
    del body

    sink = pa.BufferOutputStream()
    table = pa.table({"genes": pa.array([["A"]]), "counts": pa.array([[0] * 50_000_000], pa.list_(pa.int64()))})
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    del table
    with pytest.raises(CellmillError) as caught:
        parser.read_now("arrow", bytes(sink.getvalue()))
    assert caught.value.http_status == 413
    assert parser.read_now("h5ad", h5ad(adata())).n_cells == 7, "the next body finds a reader"
    assert resident() - before < 1 << 30


def test_a_reader_that_dies_or_hangs_is_replaced() -> None:
    parser = BodyParser(LIMITS)
    assert parser.read_now("json", b'{"genes": ["A"], "cells": [{"counts": [1]}]}').n_cells == 1
    process = parser._process
    assert process is not None
    process.kill()
    process.wait()
    assert parser.read_now("json", b'{"genes": ["A"], "cells": [{"counts": [1]}]}').n_cells == 1
    parser.close()
    slow = BodyParser(LimitsConfig(parser_seconds=0.05))
    body = b'{"genes": ["A"], "cells": [' + b",".join([b'{"counts": [1]}'] * 400_000) + b"]}"
    start = time.monotonic()
    with pytest.raises((SlowBodyError, RequestError)) as caught:
        slow.read_now("json", body)
    assert caught.value.http_status == 408
    assert time.monotonic() - start < 60
    slow.close()
