"""The catalogue is complete, typed, and honest about what is not known."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from cellmill.errors import ConfigError
from cellmill.genes import load_table
from cellmill.ingestion.datasets import catalogue, find
from cellmill.ingestion.datasets.cli import app
from cellmill.ingestion.datasets.entries import UrlFile

OF_THE_PAPER = {
    *(f"census_{organ}" for organ in ("heart", "blood", "brain", "lung", "kidney", "intestine", "pancreas")),
    *("census_others", "census_pan_cancer"),
    *("multiple_sclerosis", "myeloid", "hpancreas"),
    *("pbmc_10k", "perirhinal_cortex", "covid_19", "lung_kim"),
    *("multiome_pbmc", "bmmc", "asap_pbmc"),
    *("adamson", "norman", "replogle"),
    "immune_human",
}


def test_every_data_set_of_the_paper_is_there_and_the_first_is_barons() -> None:
    names = list(catalogue())
    assert names[0] == "baron_human_pancreas"
    assert set(names) >= OF_THE_PAPER
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", list(catalogue()))
def test_entry(name: str) -> None:
    entry = find(name)
    assert entry.how
    assert entry.tasks
    assert entry.reference is None or entry.reference.startswith("10.")
    if entry.file is not None:
        assert entry.filename is not None
        assert entry.filename.startswith(name)
    if isinstance(entry.file, UrlFile):
        assert (entry.file.member is not None) == (entry.file.unpack == "zip")
    if entry.name.startswith("census_"):
        assert entry.census is not None
        assert "suspension_type != 'na'" in entry.census.value_filter
    assert load_table(entry.organism).release


def test_sizes_agree_with_the_splits_of_the_paper() -> None:
    assert find("multiple_sclerosis").cells == 7_844 + 13_468
    assert find("myeloid").cells == 9_748 + 3_430
    assert find("hpancreas").cells == 10_600 + 4_218
    assert find("pbmc_10k").cells == 7_982 + 4_008
    assert find("perirhinal_cortex").cells == 8_465 + 9_070
    assert find("asap_pbmc").cells == 5_023 + 3_666 + 3_517 + 4_849


def test_a_misspelt_name_gets_the_near_ones() -> None:
    with pytest.raises(ConfigError, match="no data set 'norma'") as caught:
        find("norma")
    assert "norman" in caught.value.fix


def test_list_and_show_for_programs(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLMILL_CACHE", str(tmp_path))
    listed = json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)["datasets"]
    assert [entry["name"] for entry in listed] == list(catalogue())
    shown = json.loads(CliRunner().invoke(app, ["show", "norman", "--json"]).stdout)
    assert shown["accession"] == "GSE133344"
    assert shown["access"] == "fetch"
    assert shown["cached"] is None
    assert shown["licence"] is None


def test_list_and_show_for_people() -> None:
    for arguments in (["list"], ["show", "census_brain"], ["show", "baron_human_pancreas"]):
        assert CliRunner().invoke(app, arguments).exit_code == 0
