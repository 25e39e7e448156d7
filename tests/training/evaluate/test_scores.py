import anndata as ad
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from sklearn.metrics import confusion_matrix, f1_score

from cellmill.errors import ConfigError
from cellmill.training.evaluate import (
    confusion,
    confusion_figure,
    logistic_regression,
    loss_figure,
    majority_class,
    score,
    umap_figure,
)
from cellmill.training.evaluate.baselines import log_normalise

NAMES = list("abcd")


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES[:3])), min_size=1, max_size=40))
def test_scores_are_those_of_scikit_learn_over_shared_classes(pairs: list[tuple[str, str]]) -> None:
    true, predicted = zip(*pairs, strict=True)
    found = score(true, predicted, NAMES[:3])
    shared = sorted(set(true) & set(NAMES[:3]))
    expected = f1_score(true, predicted, labels=shared, average="macro", zero_division=0) if shared else 0.0
    assert found.macro_f1 == pytest.approx(expected)
    assert found.accuracy == pytest.approx(np.mean([a == b for a, b in pairs]))
    assert found.n_unseen == true.count("d")
    np.testing.assert_array_equal(confusion(true, predicted, NAMES), confusion_matrix(true, predicted, labels=NAMES))


def test_no_test_cell_is_an_error() -> None:
    with pytest.raises(ConfigError, match="No cell is left"):
        score([], [], NAMES)


def test_baselines_on_two_clear_classes() -> None:
    rng = np.random.default_rng(0)
    rates = np.array([[5.0] * 10 + [0.5] * 10, [0.5] * 10 + [5.0] * 10])
    codes = rng.integers(0, 2, 90)
    counts = sparse.csr_matrix(rng.poisson(rates[codes]))
    labels = [NAMES[code] for code in codes]
    guess = logistic_regression(counts[:60], labels[:60], counts[60:])
    assert list(guess) == labels[60:]
    assert list(logistic_regression(counts[:60], labels[:60], counts[60:], max_cells=20)) == labels[60:]
    assert list(logistic_regression(counts[:5], ["a"] * 5, counts[:2])) == ["a", "a"]
    assert list(majority_class(["b", "a", "b"], 2)) == ["b", "b"]


def test_log_normalise_keeps_empty_cells_at_zero() -> None:
    dense = log_normalise(sparse.csr_matrix(np.array([[1, 3], [0, 0]]))).toarray()
    np.testing.assert_allclose(dense, [[np.log1p(2500), np.log1p(7500)], [0, 0]], rtol=1e-6)


def test_figures_are_drawn() -> None:
    lines = [{"step": i, "loss": 1 / i, "gep": 0.5 / i, "lr": 0.1} for i in range(1, 4)]
    assert len(loss_figure(lines, parts=("gep",)).axes[0].lines) == 2
    assert confusion_figure(np.array([[3, 1], [0, 0]]), ["a", "b"]).axes
    cells = ad.AnnData(obsm={"X_cellmill": np.random.default_rng(0).normal(size=(12, 4))}, shape=(12, 0))
    cells.obs["kind"] = ["x", "y"] * 6
    assert umap_figure(cells, color="kind").axes
    assert cells.obsm["X_umap"].shape == (12, 2)
    with pytest.raises(ConfigError, match="no column 'sort'"):
        umap_figure(cells, color="sort")
