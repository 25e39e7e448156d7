"""Embedding and annotating: the same answer whatever stands around a cell, and clear refusals."""

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellmill.errors import CellmillError, CountsError, GeneMappingError, ModelError
from cellmill.models import ModelFolder
from cellmill.training import Predictor, annotate, embed
from tests.training.small import cells, genes, make_model

CLASSES = ("alpha", "beta", "gamma")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return make_model(tmp_path_factory.mktemp("model") / "small", CLASSES, panel=150)


@pytest.fixture(scope="module")
def query() -> ad.AnnData:
    return cells(40, [gene.id for gene in genes()])


def test_embeddings_have_length_one_and_the_input_stays_as_it_was(folder: ModelFolder, query: ad.AnnData) -> None:
    result = embed(query, folder.path)
    assert result.obsm["X_cellmill"].shape == (40, 16)
    assert result.obsm["X_cellmill"].dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(result.obsm["X_cellmill"], axis=1), 1, rtol=1e-5)
    assert "X_cellmill" not in query.obsm
    assert result.uns["cellmill"]["model_digest"] == folder.digest
    assert result.uns["cellmill"]["genes_used"] == 150


def test_a_cell_is_the_same_in_any_company(folder: ModelFolder, query: ad.AnnData) -> None:
    whole = embed(query, folder).obsm["X_cellmill"]
    order = np.random.default_rng(0).permutation(query.n_obs)
    np.testing.assert_allclose(embed(query[order], folder).obsm["X_cellmill"], whole[order], atol=1e-6)
    alone = np.concatenate([embed(query[[i]], folder).obsm["X_cellmill"] for i in (3, 17)])
    np.testing.assert_allclose(alone, whole[[3, 17]], atol=1e-6)
    few = Predictor(folder, token_capacity=70)
    np.testing.assert_allclose(few.embed(few.prepare(query).block), whole, atol=1e-6)


def test_a_cell_is_the_same_under_any_spelling_of_its_genes(folder: ModelFolder, query: ad.AnnData) -> None:
    whole = embed(query, folder).obsm["X_cellmill"]
    order = np.random.default_rng(1).permutation(query.n_vars)
    symbols = {gene.id: gene.symbol for gene in genes()}
    renamed = query[:, order].copy()
    renamed.var_names = [symbols[name] for name in renamed.var_names]
    extra = cells(query.n_obs, ["MT-unknown1", "ERCC-00002"], seed=9)
    wider = ad.AnnData(
        sparse.hstack([renamed.X, extra.X], format="csr"),
        obs=query.obs,
        var=pd.DataFrame(index=[*renamed.var_names, *extra.var_names]),
    )
    np.testing.assert_allclose(embed(wider, folder).obsm["X_cellmill"], whole, atol=1e-6)


def test_annotation_gives_labels_with_their_probability(folder: ModelFolder, query: ad.AnnData) -> None:
    result = annotate(query, folder)
    predictor = Predictor(folder)
    expected = predictor.annotate(predictor.prepare(query).block)
    assert result.obs["cellmill_label"].tolist() == expected.labels.tolist()
    assert set(expected.labels) <= set(CLASSES)
    np.testing.assert_allclose(expected.probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(result.obs["cellmill_confidence"], expected.probabilities.max(axis=1))


def test_counts_are_found_where_they_are(folder: ModelFolder, query: ad.AnnData) -> None:
    expected = embed(query, folder).obsm["X_cellmill"]
    shown = query.copy()
    shown.layers["counts"] = shown.X.copy()
    shown.X = np.log1p(shown.X.toarray())
    result = embed(shown, folder)
    assert result.uns["cellmill"]["counts_from"] == "layers/counts"
    np.testing.assert_array_equal(result.obsm["X_cellmill"], expected)
    with pytest.raises(CountsError, match="log-transformed"):
        embed(shown, folder, counts="X")
    with pytest.raises(CountsError, match=r"no matrix at 'raw\.X'"):
        embed(shown, folder, counts="raw.X")


def _mouse(query: ad.AnnData) -> ad.AnnData:
    return cells(5, [gene.id for gene in genes(organism="mouse")])


def _few(query: ad.AnnData) -> ad.AnnData:
    return query[:, :10]


def _nonsense(query: ad.AnnData) -> ad.AnnData:
    return cells(5, [f"feature{i}" for i in range(300)])


def _empty_cell(query: ad.AnnData) -> ad.AnnData:
    other = query.copy()
    other.X[7] = 0
    return other


def _normalised(query: ad.AnnData) -> ad.AnnData:
    other = query.copy()
    other.X = other.X * 1.7
    return other


@pytest.mark.parametrize(
    ("spoil", "kind", "text"),
    [
        (_mouse, GeneMappingError, "mouse genes; the model was trained on human"),
        (_few, GeneMappingError, "10 of the model's 150 genes"),
        (_nonsense, GeneMappingError, "None of the 300 genes is known"),
        (_empty_cell, GeneMappingError, "1 of 40 cells have no count"),
        (_normalised, CountsError, "not raw counts"),
    ],
)
@pytest.mark.filterwarnings("ignore:Changing the sparsity structure")
def test_what_does_not_fit_is_refused(
    folder: ModelFolder,
    query: ad.AnnData,
    spoil: Callable[[ad.AnnData], ad.AnnData],
    kind: type[CellmillError],
    text: str,
) -> None:
    with pytest.raises(kind, match=text):
        embed(spoil(query), folder)


def test_a_model_without_classes_does_not_annotate(tmp_path: Path, query: ad.AnnData) -> None:
    with pytest.raises(ModelError, match="has no classes"):
        annotate(query, make_model(tmp_path / "plain"))
