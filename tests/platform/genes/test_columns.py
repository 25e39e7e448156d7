"""Columns of several modalities in one data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cellmill.errors import ConfigError, GeneMappingError
from cellmill.genes import MODALITIES, GeneConfig, PeakConfig, Vocabulary, map_columns, read_regions
from cellmill.tokens.modalities import BINARY, Modalities

NAMES = ["chr1:1-9", "TP53", "CD3_TotalSeqB", "guide-1", "1-1-9", "P53", "nonsense", "CD4", "IgG1", "guide-2"]
KINDS = ["atac", "rna", "protein", "CRISPR Guide Capture", "atac", "rna", "rna", "protein", "protein", "Custom"]


def joined(**settings: Any) -> Any:
    return map_columns(NAMES, KINDS, organism="human", assembly="hg38", **settings)


def test_each_column_goes_by_the_rules_of_its_modality() -> None:
    mapping = joined(peaks=PeakConfig(binarise=True))
    assert [feature.id for feature in mapping.features] == [
        "ENSG00000141510",
        "hg38:chr1:1-9",
        "protein:human:CD3",
        "protein:human:CD4",
    ]
    assert mapping.target.tolist() == [1, 0, 2, -1, 1, 0, -1, 3, -1, -1]
    assert mapping.binary.tolist() == [False, True, False, False]
    assert mapping.organism == "human"
    umis = np.arange(10.0) + 1
    reports = mapping.reports(umis)
    assert [report.modality for report in reports] == ["rna", "atac", "protein", "CRISPR Guide Capture", "Custom"]
    assert sum(sum(report.umis.values()) for report in reports) == umis.sum()
    assert sum(sum(report.genes.values()) for report in reports) == len(NAMES)
    genes, peaks, proteins, guides, custom = reports
    assert (genes.umis_summed, peaks.umis_summed) == (6.0, 5.0)
    assert (peaks.binarised, genes.binarised) == (True, False)
    assert (guides.genes, guides.umis, guides.umis_lost) == ({"other_modality": 1}, {"other_modality": 4.0}, 0.0)
    assert custom.genes_out == 0
    assert proteins.umis == {"matched": 8.0, "alias": 3.0, "isotype_control": 9.0}


def test_a_vocabulary_holds_features_of_all_modalities_and_tokens_know_them() -> None:
    vocabulary = Vocabulary(joined().features)
    assert vocabulary.lookup(["hg38:chr1:1-9", "protein:human:CD4"]).tolist() == [9, 11]
    assert Vocabulary.from_parquet(vocabulary.to_parquet()) == vocabulary
    modalities = Modalities.of(vocabulary)
    assert modalities.names == MODALITIES
    assert set(BINARY) <= set(MODALITIES)
    assert modalities.binary.tolist() == [False, True, False]


def test_the_organism_of_peaks_is_that_of_their_assembly() -> None:
    assert map_columns(["chr1:1-9"], ["atac"], organism=None, assembly="mm10").organism == "mouse"
    with pytest.raises(ConfigError, match="organism is not known"):
        map_columns(["CD3"], ["protein"], organism=None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"organism": "mouse"}, "no assembly of mouse"),
        ({"assembly": None}, "without their assembly"),
        ({"genes": GeneConfig(ortholog_to="mouse")}, "no orthologs"),
        ({"regions": read_regions(b"chr1\t1\t9\n", "hg19", "")}, "peaks are of hg38, the regions of hg19"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        map_columns(NAMES, KINDS, **{"organism": "human", "assembly": "hg38", **settings})


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(GeneMappingError):
        map_columns(NAMES, KINDS[1:], organism="human")
