"""Arrays read around the HDF5 library, against the library."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmill.ingestion.sources import vector
from cellmill.ingestion.sources.vector import Vector

HOW: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunked": {"chunks": (37,)},
    "gzip": {"chunks": (37,), "compression": "gzip"},
    "shuffle and gzip": {"chunks": (37,), "compression": "gzip", "shuffle": True},
    "lzf": {"chunks": (37,), "compression": "lzf"},
    "checksums": {"chunks": (37,), "compression": "gzip", "fletcher32": True},
    "one large chunk": {"chunks": (1000,), "compression": "gzip"},
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("vector") / "a.h5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as out:
        for kind in ("int64", ">i4", "float32", "uint8"):
            values = rng.integers(0, 200, 1000).astype(kind)
            for name, how in HOW.items():
                out.create_dataset(f"{kind}/{name}", data=values, **how)
    with h5py.File(path) as found:
        yield found


@settings(max_examples=60, deadline=None)
@given(ranges=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=6))
@pytest.mark.parametrize("kind", ["int64", ">i4", "float32", "uint8"])
@pytest.mark.parametrize("name", HOW)
def test_any_ranges_in_any_order_are_what_the_library_reads(
    file: Any, kind: str, name: str, ranges: list[tuple[int, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector, "_LARGE", 500)
        patch.setattr(vector, "_PIECE", 64)
        array = Vector(file[f"{kind}/{name}"])
        for one, other in ranges:
            start, stop = min(one, other), max(one, other)
            np.testing.assert_array_equal(array.read(start, stop), file[f"{kind}/{name}"][start:stop])


@pytest.mark.parametrize("large", [1, 1 << 22])
def test_a_damaged_chunk_is_an_error(tmp_path: Path, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector, "_LARGE", large)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as out:
        array = out.create_dataset("x", data=np.arange(5000), chunks=(5000,), compression="gzip")
        place = array.id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    middle = place.byte_offset + place.size // 2
    for damaged in (content[:middle] + b"\xff" * 40 + content[middle + 40 :], content[:middle]):
        path.write_bytes(bytes(damaged))
        try:
            found = h5py.File(path)
        except OSError:
            continue  # cut short, which the library sees itself
        with found, pytest.raises(OSError, match=r"cannot be decoded|does not have the size|ends before"):
            Vector(found["x"]).read(0, 5000)
