"""The report for people says what the report for machines says."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from scipy import sparse

from cellmill.genes import GeneConfig
from cellmill.ingestion import IngestConfig, SourceConfig, ingest
from cellmill.ingestion.flows import draw_flows
from cellmill.ingestion.plots import gene_figure
from tests.ingestion.cells import make_adata, write


def rows(page: str) -> dict[str, list[str]]:
    """Return the cells of all table rows by the text of their first."""
    found: dict[str, list[str]] = {}
    for row in re.findall(r"<tr[^>]*>(.*?)</tr>", page, flags=re.DOTALL):
        first, *rest = (unescape(cell) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", row))
        found.setdefault(first, rest)
    return found


def test_the_page_tells_of_genes_umis_cells_licence_and_provenance(tmp_path: Path) -> None:
    one, two = make_adata(30), make_adata(20, seed=1)
    one.var_names = [*one.var_names[:-2], "no-such-gene<b>", "ENSG00000000003.99"]
    sources = (
        SourceConfig(
            path=str(write(one, tmp_path / "one.h5ad")), organism="human", licence="CC-BY-4.0", where="age < 25"
        ),
        SourceConfig(path=str(write(two, tmp_path / "two.h5ad")), organism="human", licence="MIT"),
    )
    result = ingest(IngestConfig(atlas=str(tmp_path / "atlas"), backend="local", sources=sources))
    page = (result.run / "report.html").read_text()
    told = rows(page)
    report = result.reports[0]
    assert told["licence"] == ["CC-BY-4.0"]
    assert told["BLAKE3"] == [report.source_digest]
    assert told["file"] == [str(tmp_path / "one.h5ad")]
    assert told["outside of `where`"] == ["5"]
    assert told["one"][1:4] == ["CC-BY-4.0", "30", "25"]
    assert told["two"][1] == "MIT"
    n, umis, _, examples = told["unknown"]
    assert (n, umis) == ("1", f"{one.X[:, -2].sum():,.0f}")
    assert examples == "no-such-gene<b>"
    assert "gene<b>" not in page
    assert page.count("data:image/png") == 2


def test_shares_of_counts_are_those_within_a_modality(tmp_path: Path) -> None:
    adata = make_adata(30, 12)
    counts = adata.X.toarray()
    counts[:, -2:] *= 1000
    adata.X = sparse.csr_matrix(counts)
    adata.var_names = [*adata.var_names[:9], "no-such-gene", "CD3", "CD4_TotalSeqB"]
    adata.var["feature_types"] = ["Gene Expression"] * 10 + ["Antibody Capture"] * 2
    sources = [
        SourceConfig(path=str(write(one, tmp_path / f"{name}.h5ad")), organism="human")
        for name, one in (("both", adata), ("genes", make_adata(20, seed=1)))
    ]
    limits = GeneConfig(max_umis_lost=0.5)
    settings = IngestConfig(atlas=str(tmp_path / "atlas"), backend="local", sources=tuple(sources), genes=limits)
    reports = ingest(settings).reports
    told = {axes.get_title(loc="left"): [text.get_text() for text in axes.texts] for axes in gene_figure(reports).axes}
    assert list(told) == ["features (rna)", "UMIs (rna)", "features (protein)", "UMIs (protein)"]
    assert told["UMIs (rna)"][:2] == ["both", "genes"]
    assert told["UMIs (protein)"][0] == "both"
    lost = counts[:, 9].sum() / (counts[:, :10].sum() + make_adata(20, seed=1).X.sum())
    assert told["UMIs (rna)"][-1].startswith("unknown")
    assert told["UMIs (rna)"][-1].endswith(f"({lost:.1%})")


def test_ribbons_are_as_wide_as_what_flows() -> None:
    flows = {"a": {"kept": 70.0, "lost": 10.0}, "b": {"kept": 20.0, "lost": 0.0}}
    axes = Figure().subplots()
    draw_flows(axes, flows, "cells")
    ribbons = [patch for patch in axes.patches if isinstance(patch, PathPatch)]
    widths = [float(np.ptp(np.asarray(patch.get_path().vertices)[[0, 7], 1])) for patch in ribbons]
    np.testing.assert_allclose(np.array(widths) / sum(widths), [0.7, 0.1, 0.2])
    assert [text.get_text() for text in axes.texts] == ["a", "b", "kept  90 (90.0%)", "lost  10 (10.0%)"]


def test_many_sources_are_drawn_as_the_largest_and_the_rest() -> None:
    axes = Figure().subplots()
    draw_flows(axes, {f"s{i}": {"kept": float(i)} for i in range(1, 31)}, "cells")
    named = [text.get_text() for text in axes.texts]
    assert named[:11] == [f"s{i}" for i in range(30, 19, -1)]
    assert named[11:] == ["19 more", f"kept  {sum(range(1, 31))} (100.0%)"]
