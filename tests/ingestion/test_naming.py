"""What data sets are called that nobody named."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellmill.ingestion import IngestConfig, SourceConfig, ingest
from cellmill.ingestion.naming import dataset_name
from cellmill.ingestion.pipeline import plan
from cellmill.ingestion.schedule.survey import survey
from cellmill.ingestion.sources import Place
from tests.ingestion.cells import make_adata, write

LAST = "filtered_feature_bc_matrix.h5"


@pytest.mark.parametrize(
    ("pattern", "path", "name"),
    [
        (f"data/*/outs/{LAST}", f"data/s1/outs/{LAST}", "s1"),
        ("data/*/outs", "data/s1.2/outs", "s1.2"),
        ("data/*/outs/", "data/s1/outs", "s1"),
        ("*/run?/outs", "s1/run2/outs", "s1_run2"),
        ("data/sample [12]/*/outs", "data/sample 1/r/outs", "sample_1_r"),
        ("s3://bucket/*/outs", "s3://bucket/s1/outs", "s1"),
        ("data/*", "data/s1", "s1"),
        ("data/*/*.h5", "data/s1/x.h5", "x"),
        ("data/*/*.h5", f"data/s1/{LAST}", Path(LAST).stem),
        ("data/s1/x.h5", "data/s1/x.h5", "x"),
        ("data/[x]/outs", "data/[x]/outs", "outs"),
        ("data/[[]x]/outs", "data/[x]/outs", "outs"),
    ],
)
def test_names_are_what_a_pattern_leaves_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, path: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert dataset_name(pattern, Place(path)) == name


def samples(folder: Path) -> IngestConfig:
    """Write samples whose files and barcodes are called alike."""
    for seed in range(3):
        (folder / f"s{seed}" / "outs").mkdir(parents=True)
        adata = make_adata(20, seed=seed)
        adata.obs_names = make_adata(20).obs_names
        write(adata, folder / f"s{seed}" / "outs" / "x.h5ad")
    source = SourceConfig(path=str(folder / "s*" / "outs" / "x.h5ad"))
    return IngestConfig(atlas=str(folder / "atlas"), sources=(source,), backend="local")


def test_samples_are_data_sets_and_keep_their_names_when_more_come(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = samples(tmp_path)
    later = tmp_path / "s2"
    hidden = later.rename(tmp_path / "later")
    assert [report.dataset for report in ingest(settings).reports] == ["s0", "s1"]
    hidden.rename(later)
    result = ingest(settings)
    assert [report.dataset for report in result.reports] == ["s2"]
    assert len(result.unchanged) == 2
    assert "one data set" not in capsys.readouterr().err
    # A schedule looks at each by itself, and makes the same of it.
    found = [one.source for one in survey(settings, dict).found.values()]
    alone = [plan(settings.model_copy(update={"sources": (source,)}))[0] for source in found]
    assert {one.digest for one in alone} == {one.digest for one in plan(settings)}
    assert not ingest(settings.model_copy(update={"sources": tuple(found)})).changed


def test_names_that_are_alike_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = samples(tmp_path)
    line = settings.sources[0].model_copy(update={"path": str(tmp_path / "s*" / "outs" / "*.h5ad")})
    assert {one.dataset for one in plan(settings.model_copy(update={"sources": (line,)}))} == {"x"}
    assert "3 sources are one data set, x, for they are called alike" in capsys.readouterr().err
    named = line.model_copy(update={"dataset": "x"})
    plan(settings.model_copy(update={"sources": (named,)}))
    assert "alike" not in capsys.readouterr().err
