"""MatrixMarket text, against scipy's reader."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from cellmill.errors import CountsError, SourceError
from cellmill.ingestion.sources import stored_rows
from cellmill.ingestion.sources.inflate import inflated
from cellmill.ingestion.sources.matrix_market import MatrixMarket
from cellmill.ingestion.sources.stored_rows import StoredRows

HEAD = b"%%MatrixMarket matrix coordinate integer general\n% a comment\n"


def pieces(text: bytes, size: int) -> Iterator[bytes]:
    return (text[i : i + size] for i in range(0, len(text), size))


def stored(text: bytes, folder: Path, size: int = 64, *, cells_are_columns: bool = True) -> StoredRows:
    matrix = MatrixMarket(inflated(pieces(text, size), "m"), "m")
    matrix.write_rows(folder, cells_are_columns=cells_are_columns)
    return StoredRows(folder)


def text_of(entries: list[tuple[int, int, float]], shape: tuple[int, int], field: str, gap: str) -> bytes:
    lines = [f"%%MatrixMarket matrix coordinate {field} general", f"{shape[0]} {shape[1]} {len(entries)}"]
    for row, column, value in entries:
        shown = {"real": repr(float(value)), "pattern": ""}.get(field, str(int(value)))
        lines.append(gap.join(filter(None, (str(row + 1), str(column + 1), shown))))
    return "\n".join(lines).encode()


@given(data=st.data())
def test_entries_in_any_order_and_spelling_equal_what_scipy_reads(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shape = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    field = data.draw(st.sampled_from(["integer", "unsigned-integer", "real", "pattern"]))
    place = st.tuples(st.integers(0, shape[0] - 1), st.integers(0, shape[1] - 1))
    places = data.draw(st.lists(place, unique=True, max_size=60))
    lowest = {"integer": -5, "unsigned-integer": 0}.get(field)
    value = st.floats(0, 1e6, allow_subnormal=False) if lowest is None else st.integers(lowest, 2**31 - 1)
    entries = [(row, column, data.draw(value)) for row, column in places]
    text = text_of(entries, shape, field, data.draw(st.sampled_from([" ", "  ", "\t"])))
    wanted = scipy.io.mmread(io.BytesIO(text)).toarray()
    if data.draw(st.booleans()):
        text = gzip.compress(text[: len(text) // 2]) + gzip.compress(text[len(text) // 2 :])
    columns = data.draw(st.booleans())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_rows, "ENTRIES_AT_ONCE", data.draw(st.integers(1, 20)))
        folder = tmp_path_factory.mktemp("rows") / "rows"
        rows = stored(text, folder, data.draw(st.integers(1, 90)), cells_are_columns=columns)
    wanted = wanted.T if columns else wanted
    start = data.draw(st.integers(0, rows.shape[0]))
    stop = data.draw(st.integers(start, rows.shape[0]))
    np.testing.assert_allclose(rows.rows(start, stop).toarray(), wanted[start:stop], rtol=1e-14)
    assert rows.starts[-1] == len(entries)
    rows.close()
    assert sorted(path.name for path in folder.iterdir()) == ["data", "header.json", "indices", "indptr.npy"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"gene,cell\n1,2\n", "not in MatrixMarket"),
        (b"", "ends before"),
        (b"%%MatrixMarket matrix array real general\n1 1\n1\n", "array real"),
        (b"%%MatrixMarket matrix coordinate complex general\n1 1 1\n1 1 1 1\n", "complex"),
        (HEAD + b"3 3\n1 1 1\n", "size is damaged"),
        (HEAD + b"2 2 5\n" + b"1 1 1\n" * 5, "cannot be"),
        (HEAD + b"99999999999 2 5\n", "cannot be"),
        (HEAD + b"3 3 -1\n", "cannot be"),
        (HEAD + b"3 3 2\n1 1 1\n", "fewer entries"),
        (HEAD + b"3 3 2\n1 1 1\n2 2 2\n3 3 3\n", "more entries"),
        (HEAD + b"3 3 2\n1 1 1\n2 x 2\n", "Line 2 of the entries is no entry"),
        (HEAD + b"3 3 2\n1 1 1\n2 2\n", "Line 2 of the entries is no entry"),
        (HEAD + b"3 3 2\n1 1 1\n2 2 2 2\n", "Line 2 of the entries is no entry"),
        (HEAD + b"3 3 2\n1 1 2\n2 2 %r\n" % np.log1p(3).item(), r"integers, but some are not \(such as 1\.38629\)"),
        (HEAD + b"3 3 2\n1 1 1\n4 2 2\n", "outside"),
        (HEAD + b"3 3 2\n1 1 1\n1 0 2\n", "outside"),
        (HEAD + b"3 3 2\n1 1 1\n-1 2 2\n", "outside"),
        (HEAD + b"3 3 2\n1 1 1\n1 2 4294967296\n", "values above"),
        (HEAD + b"3 3 2\n" + b"1" * (1 << 23), "without an end"),
    ],
)
def test_what_is_no_matrix_of_counts_is_refused(tmp_path: Path, text: bytes, what: str) -> None:
    with pytest.raises(SourceError, match=what) as caught:
        stored(text, tmp_path / "rows", 1 << 20)
    assert caught.value.where == "m"
    assert caught.value.fix


@pytest.mark.parametrize("value", [b"nan", b"NaN", b"inf", b"-Infinity"])
def test_a_value_that_is_no_number_is_called_so(tmp_path: Path, value: bytes) -> None:
    text = HEAD.replace(b"integer", b"real") + b"3 3 2\n1 1 1.0\n1 2 " + value + b"\n"
    with pytest.raises(CountsError, match="NaN or infinite, in line 2 of the entries"):
        stored(text, tmp_path / "rows")


def test_a_heading_of_very_many_comments_is_given_up_soon(tmp_path: Path) -> None:
    few = HEAD + b"% a comment\n" * 1000 + b"3 3 1\n1 1 1\n"
    assert stored(few, tmp_path / "few").starts[-1] == 1
    blocks = iter([HEAD, *[b"%\n" * (1 << 21)] * 50])
    with pytest.raises(SourceError, match="comments before the entries are longer"):
        MatrixMarket(blocks, "m")
    assert len(list(blocks)) == 49


def test_gzip_that_is_damaged_cut_short_or_a_bomb_is_refused(tmp_path: Path) -> None:
    text = HEAD + b"3 3 2\n1 1 1\n2 2 2\n"
    packed = gzip.compress(text)
    bomb = gzip.compress(HEAD + b"3 3 2\n" + b"\n" * (1 << 27))
    for bad, what in ((packed[:-9], "cut short"), (packed[:20] + b"!!" + packed[22:], "damaged"), (bomb, "grown")):
        with pytest.raises(SourceError, match=what):
            stored(bad, tmp_path / what, 1 << 16)
    assert stored(packed + b"\0\0\0", tmp_path / "padded").starts[-1] == 2


def test_memory_is_bounded_whatever_the_size_and_the_order(tmp_path: Path) -> None:
    import tracemalloc

    rng = np.random.default_rng(0)
    n = 1_500_000
    entries = np.unique(rng.integers(0, 2000 * 5000, n))
    rng.shuffle(entries)
    matrix: Any = sparse.coo_matrix(
        (rng.integers(1, 9, entries.size), (entries // 5000, entries % 5000)), shape=(2000, 5000)
    )
    buffer = io.BytesIO()
    scipy.io.mmwrite(buffer, matrix)
    text = buffer.getvalue()
    stored(HEAD + b"1 1 1\n1 1 1\n", tmp_path / "compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_rows, "ENTRIES_AT_ONCE", 1 << 16)
        tracemalloc.start()
        rows = stored(text, tmp_path / "rows", 1 << 18)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 10e6 < len(text)
    assert abs(rows.rows(0, 5000) - matrix.T.tocsr()).sum() == 0
