"""Proteins by the names that panels give to their antibodies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmill.genes import GeneReport, ProteinConfig
from cellmill.genes.proteins import antigen_of, is_isotype_control, map_proteins


@pytest.mark.parametrize(
    "name",
    [
        "CD3",
        "CD3_TotalSeqB",
        "CD3-TotalSeqC",
        "CD3_TotalSeq-A",
        "CD3 TotalSeq B",
        "CD3 (UCHT1)",
        "CD3(UCHT1)",
        "CD3 (UCHT1)_TotalSeqB",
        "anti-human CD3",
        "Anti-Human CD3 (UCHT1)",
        "anti-mouse/human CD3",
        "adt_CD3",
        "ADT:CD3",
        "CD3_ADT",
        "CD3-ab",
        "CD3_PROT",
        "prot_CD3",
        "CD3-CTCATTGTAACTCCT",
        "CD3-CTCATTGTAACTCCT_TotalSeqA",
        "Hu.CD3_UCHT1",
        "HuMs.CD3",
        "CD3:UCHT1|CD3E|AHS0231|pAbO",
        "cd3_totalseqb",
        "protein:human:CD3",
    ],
)
def test_panels_agree_on_one_protein(name: str) -> None:
    (feature,) = map_proteins([name], organism="human").features
    assert feature.id == "protein:human:CD3"
    assert feature.symbol.upper() == "CD3"
    assert (feature.modality, feature.organism) == ("protein", "human")


@pytest.mark.parametrize(
    ("name", "antigen"),
    [
        ("PD-1_TotalSeqB", "PD-1"),
        ("TIM-3", "TIM-3"),
        ("CD3-1", "CD3-1"),  # perhaps the first of two clones, perhaps not: it is left alone
        ("HLA-DR_TotalSeqB", "HLA-DR"),
        ("HLA.DR", "HLA-DR"),
        ("HLA DR", "HLA-DR"),
        ("CD45RA_TotalSeqB", "CD45RA"),
        ("CD45RO_TotalSeqB", "CD45RO"),
        ("B7-H4", "B7-H4"),
        ("Fab", "Fab"),
        ("IgM", "IgM"),
        ("TotalSeqB", "TotalSeqB"),
        ("CD158 (KIR2DL1/S1/S3/S5)", "CD158"),
    ],
)
def test_what_belongs_to_the_antigen_stays(name: str, antigen: str) -> None:
    assert antigen_of(name) == antigen


@pytest.mark.parametrize(
    ("name", "control"),
    [
        ("IgG1_control_TotalSeqB", True),
        ("IgG2a_control_TotalSeqB", True),
        ("IgG2b", True),
        ("Mouse IgG1, κ isotype Ctrl", True),
        ("mouse_IgG2a_k", True),
        ("Rat-IgG2b_TotalSeqC", True),
        ("Armenian Hamster IgG", True),
        ("Isotype_MOPC.21", True),
        ("isotype control 3", True),
        ("IgM", False),
        ("IgD_TotalSeqC", False),
        ("IgG-Fc", False),
        ("CD3", False),
        ("Siglec-8", False),
        ("FceRIa", False),
    ],
)
def test_isotype_controls(name: str, control: bool) -> None:
    assert is_isotype_control(name) is control


def test_controls_are_dropped_and_counted_but_are_no_loss() -> None:
    names = ["CD3_TotalSeqB", "CD4", "IgG1_control_TotalSeqB", "7"]
    mapping = map_proteins(names, organism="mouse")
    assert mapping.target.tolist() == [0, 1, -1, -1]
    report = mapping.report(np.array([10.0, 5.0, 100.0, 5.0]))
    assert report.genes == {"matched": 1, "alias": 1, "unknown": 1, "isotype_control": 1}
    assert report.umis_lost == pytest.approx(0.25)
    assert report.examples["alias"] == ("CD3_TotalSeqB → CD3",)
    assert GeneReport.model_validate_json(report.model_dump_json()) == report
    kept = map_proteins(names, organism="mouse", config=ProteinConfig(controls="keep"))
    assert [feature.id for feature in kept.features] == [
        "protein:mouse:CD3",
        "protein:mouse:CD4",
        "protein:mouse:IGG1-CONTROL",
    ]


def test_two_antibodies_of_one_protein_stay_apart_unless_asked() -> None:
    names = ["CD4 (RPA-T4)", "CD4 (SK3)", "CD4_TotalSeqA", "CD8"]
    apart = map_proteins(names, organism="human")
    assert [feature.id for feature in apart.features] == [
        "protein:human:CD4",
        "protein:human:CD4#2",
        "protein:human:CD4#3",
        "protein:human:CD8",
    ]
    summed = map_proteins(names, organism="human", config=ProteinConfig(duplicates="sum"))
    assert summed.target.tolist() == [0, 0, 0, 1]
    assert summed.report(np.array([1.0, 2.0, 3.0, 4.0])).umis_summed == 5


@given(st.lists(st.text(max_size=30), max_size=8))
def test_any_names_have_unique_features_and_a_fixed_point(names: list[str]) -> None:
    mapping = map_proteins(names, organism="human")
    assert len({feature.id for feature in mapping.features}) == len(mapping.features)
    assert np.array_equal(np.sort(mapping.target[mapping.target >= 0]), np.arange(len(mapping.features)))
    for name in names:
        once = antigen_of(name)
        assert antigen_of(once) == once
