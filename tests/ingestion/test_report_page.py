"""The report for people says what the report for machines says."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch

from cellmill.ingestion import IngestConfig, SourceConfig, ingest
from cellmill.ingestion.flows import draw_flows
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
