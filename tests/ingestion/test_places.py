"""Where the raw counts are is found and stated, or every matrix is refused by its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from cellmill.errors import CountsError, ResourceError, SourceError
from cellmill.ingestion.places import find_counts
from cellmill.ingestion.sources import AnnDataSource
from tests.ingestion.cells import make_adata

MEGABYTES = 1024


def counts() -> Any:
    return make_adata().X


def logs() -> Any:
    return sparse.csr_matrix(np.log1p(counts().toarray()))


def scaled() -> Any:
    dense = counts().toarray()
    return (dense - dense.mean(0)) / (dense.std(0) + 1)


def nothing() -> Any:
    return sparse.csr_matrix(counts().shape, dtype=np.float32)


def noisy() -> Any:
    return sparse.csr_matrix(counts().toarray() * (1 + 1e-13))


def source(**matrices: Callable[[], Any]) -> AnnDataSource:
    adata = make_adata()
    adata.X = matrices.pop("X", lambda: None)()
    if "raw" in matrices:
        adata.raw = ad.AnnData(matrices.pop("raw")(), var=adata.var)
    for name, make in matrices.items():
        adata.layers[name] = make()
    return AnnDataSource(adata, "a")


@pytest.mark.parametrize(
    ("matrices", "place"),
    [
        ({"X": counts}, "X"),
        ({"X": noisy}, "X"),
        ({"X": scaled, "raw": counts}, "raw.X"),
        ({"X": counts, "raw": logs}, "X"),
        ({"X": counts, "raw": nothing}, "X"),
        ({"X": logs, "raw": logs, "counts": counts}, "layers/counts"),
        ({"X": counts, "raw": counts, "Raw_Counts": counts}, "layers/Raw_Counts"),
        ({"X": counts, "counts": logs}, "X"),
        ({"X": nothing}, "X"),
    ],
)
def test_the_likeliest_place_with_counts_is_taken(matrices: dict[str, Any], place: str) -> None:
    assert find_counts(source(**matrices), "auto", MEGABYTES) == place


@pytest.mark.parametrize(
    ("matrices", "wanted", "what", "fix"),
    [
        ({"X": logs}, "auto", "log-transformed", "raw counts"),
        ({"X": scaled, "raw": logs}, "auto", r"raw\.X: .*log-transformed.* X: .*scaled", "raw counts"),
        ({"X": logs, "spliced": counts}, "auto", "log-transformed", "Integers are in layers/spliced"),
        ({"spliced": counts}, "auto", "No place says", "Integers are in layers/spliced"),
        ({"X": counts, "normalised": logs}, "layers/normalised", "log-transformed", "Integers are in X"),
    ],
)
def test_what_holds_none_is_refused_by_its_reason(matrices: dict[str, Any], wanted: str, what: str, fix: str) -> None:
    with pytest.raises(CountsError, match=what) as caught:
        find_counts(source(**matrices), wanted, MEGABYTES)
    assert fix in caught.value.fix


def test_an_empty_matrix_is_not_proposed() -> None:
    with pytest.raises(CountsError, match="log-transformed") as caught:
        find_counts(source(X=logs, raw=nothing), "auto", MEGABYTES)
    assert "Integers are in" not in caught.value.fix


def test_a_file_without_a_matrix() -> None:
    with pytest.raises(SourceError, match="has no matrix"):
        find_counts(source(), "auto", MEGABYTES)


class Chunked(AnnDataSource):
    """Cells whose matrices at some places are stored in chunks of a gigabyte, and are never to be read."""

    large: tuple[str, ...] = ()

    def blocks(self, place: str) -> dict[str, int]:
        return {"Decoding a chunk of data": 10**9 if place in self.large else 10**6}

    def rows(self, place: str, start: int, stop: int) -> sparse.csr_matrix:
        assert place not in self.large
        return super().rows(place, start, stop)


@pytest.mark.parametrize("large", [("X",), ("X", "layers/more")])
def test_a_matrix_of_large_chunks_is_not_read_where_another_comes_first(large: tuple[str, ...]) -> None:
    found = Chunked(source(X=logs, raw=counts, more=counts)._adata, "a")
    found.large = large
    assert find_counts(found, "auto", MEGABYTES) == "raw.X"
    with pytest.raises(ResourceError, match="Decoding a chunk of data takes 1,000 MB at once") as caught:
        find_counts(found, "X", MEGABYTES)
    assert "`task_memory_mb` to 4,000" in caught.value.fix
    assert caught.value.where.endswith(": X")


def test_a_matrix_of_large_chunks_is_refused_before_it_is_read_and_not_passed_over() -> None:
    found = Chunked(source(X=counts, raw=counts)._adata, "a")
    found.large = ("raw.X",)
    with pytest.raises(ResourceError, match="takes 1,000 MB at once"):
        find_counts(found, "auto", MEGABYTES)


def test_what_is_proposed_fits_into_a_task() -> None:
    found = Chunked(source(X=logs, spliced=counts, unspliced=counts)._adata, "a")
    found.large = ("layers/spliced",)
    with pytest.raises(CountsError) as caught:
        find_counts(found, "auto", MEGABYTES)
    assert "Integers are in layers/unspliced:" in caught.value.fix
