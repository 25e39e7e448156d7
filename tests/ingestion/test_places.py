"""Where the raw counts are is found and stated, or every matrix is refused by its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from cellmill.errors import CountsError, SourceError
from cellmill.ingestion.places import find_counts
from cellmill.ingestion.sources import AnnDataSource
from tests.ingestion.cells import make_adata


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
    assert find_counts(source(**matrices), "auto") == place


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
        find_counts(source(**matrices), wanted)
    assert fix in caught.value.fix


def test_an_empty_matrix_is_not_proposed() -> None:
    with pytest.raises(CountsError, match="log-transformed") as caught:
        find_counts(source(X=logs, raw=nothing), "auto")
    assert "Integers are in" not in caught.value.fix


def test_a_file_without_a_matrix() -> None:
    with pytest.raises(SourceError, match="has no matrix"):
        find_counts(source(), "auto")
