"""What cells are judged by, against sums over a dense matrix."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from cellmill.atlas.content import feature_keys
from cellmill.genes import ColumnMapping, Feature
from cellmill.ingestion import QualityConfig
from cellmill.ingestion.harmonising import Harmoniser
from cellmill.ingestion.quality import Measures, feature_kinds, judge

GENES = [
    Feature("ENSG00000198888", "MT-ND1"),
    Feature("ENSG00000205362", "MT1A"),
    Feature("ENSG00000141510", "TP53"),
    Feature("ENSMUSG00000064341", "mt-Nd1"),
]
ALL = np.ones(5, bool)
PEAK = Feature("hg38:chr1:0-10", "chr1:0-10", modality="atac")


def measure(dense: np.ndarray, features: list[Feature]) -> Measures:
    n_features = len(features)
    mapping = ColumnMapping(
        tuple(feature.id for feature in features),
        tuple(features),
        np.arange(n_features, dtype=np.int32),
        np.zeros(n_features, bool),
        (),
    )
    keys = feature_keys([feature.id for feature in features])
    harmoniser = Harmoniser(mapping, feature_kinds(features), keys, *dense.shape)
    harmoniser.add(sparse.csr_matrix(dense), "here")
    return harmoniser.measures()


def test_measures_are_those_of_a_dense_matrix() -> None:
    features = [*GENES, PEAK]
    dense = np.random.default_rng(0).poisson(0.8, (200, len(features)))
    found = measure(dense, features)
    genes = dense[:, :4]
    np.testing.assert_array_equal(found.n_features, (dense > 0).sum(1))
    np.testing.assert_array_equal(found.n_genes, (genes > 0).sum(1))
    np.testing.assert_array_equal(found.n_counts, genes.sum(1))
    with np.errstate(invalid="ignore"):
        share = genes[:, [0, 3]].sum(1) / genes.sum(1)
    np.testing.assert_allclose(found.mito_share, share, rtol=1e-6)
    assert np.isnan(share).any()


def test_cells_without_genes_are_judged_by_all_features() -> None:
    found = measure(np.array([[3], [0]]), [PEAK])
    assert found.n_genes.tolist() == [1, 0]
    assert found.n_counts.tolist() == [3, 0]
    assert np.isnan(found.mito_share).all()


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"min_genes": 2}, "fewer genes than min_genes"),
        ({"max_genes": 3}, "more genes than max_genes"),
        ({"min_counts": 5}, "fewer UMIs than min_counts"),
        ({"max_counts": 11}, "more UMIs than max_counts"),
        ({"max_mito_share": 0.5}, "more mitochondrial UMIs than max_mito_share"),
    ],
)
def test_each_limit_leaves_out_its_cell(limit: dict[str, float], reason: str) -> None:
    dense = np.array([[0, 3, 3, 0], [0, 9, 0, 0], [3, 3, 3, 3], [5, 0, 2, 2], [0, 3, 1, 0]])
    outside = {"min_genes": 1, "max_genes": 2, "min_counts": 4, "max_counts": 2, "max_mito_share": 3}
    kept, dropped = judge(measure(dense, GENES), QualityConfig.model_validate(limit), ALL[:5])
    assert dropped == {reason: 1}
    assert np.flatnonzero(~kept).tolist() == [outside[next(iter(limit))]]


def test_the_first_reason_counts() -> None:
    found = measure(np.array([[1, 0, 0, 0]]), GENES)
    kept, dropped = judge(found, QualityConfig(min_genes=2, min_counts=2), ALL[:1])
    assert not kept.any()
    assert dropped == {"fewer genes than min_genes": 1}
