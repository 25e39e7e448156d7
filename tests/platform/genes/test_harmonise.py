"""Names of every spelling, on real genes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cellmill.errors import ConfigError, GeneMappingError
from cellmill.genes import GeneConfig, Status, detect_organism, harmonise, load_table, lower_case_genes

TP53, ACTB, MARCHF1, SEPTIN2 = "ENSG00000141510", "ENSG00000075624", "ENSG00000145416", "ENSG00000168385"


def one(name: str, *, symbol: str | None = None, organism: str = "human", **config: object) -> tuple[str | None, str]:
    """Return the id and the status of one name alone."""
    mapping = harmonise(
        [name],
        organism="mouse" if organism == "mouse" else "human",
        symbols=None if symbol is None else [symbol],
        config=GeneConfig.model_validate(config),
    )
    return (mapping.features[0].id if mapping.features else None), mapping.status[0].value


@pytest.mark.parametrize(
    ("name", "gene", "status"),
    [
        (TP53, TP53, "matched"),
        ("ENSG00000141510.18", TP53, "matched"),
        ("ENSG00000141510.18_7", TP53, "matched"),
        (" TP53 ", TP53, "matched"),
        ("hg19_TP53", TP53, "matched"),
        ("GRCh38_TP53", TP53, "matched"),
        ("GRCh38______TP53", TP53, "matched"),
        ("GRCh38-2020-A_ENSG00000141510", TP53, "matched"),
        ("GRCh38.p13_TP53", TP53, "matched"),
        ("hg19_premrna_TP53", TP53, "matched"),
        ("TP53_ENSG00000141510", TP53, "matched"),
        ("ENSG00000141510.18|TP53", TP53, "matched"),
        ("P53", TP53, "alias"),
        ("SEPT2", SEPTIN2, "alias"),
        ("MARCH1", MARCHF1, "alias"),
        ("C11orf95", "ENSG00000188070", "alias"),
        ("C11ORF95", "ENSG00000188070", "alias"),
        ("HLA.DRA", "ENSG00000204287", "matched"),
        ("RP11-149P14.2", "ENSG00000285833", "alias"),
        ("ENSG00000112096", "ENSG00000291237", "replaced"),  # SOD2 has a new id since GENCODE v44
        ("ENSG00000235068", "ENSG00000204531", "replaced"),  # POU5F1 on an alternate locus
        ("ENSG00000169084.13_PAR_Y", "ENSG00000169084", "replaced"),
        ("ENSG00000292338", "ENSG00000169084", "replaced"),  # DHRSX: chrY's copy of a pseudo-autosomal gene
        ("ENSG00000999999", None, "retired"),
        ("MT1", None, "ambiguous"),
        ("Y_RNA", None, "ambiguous"),
        ("OCT1", None, "ambiguous"),
        ("ENSMUSG00000059552", None, "other_species"),
        ("mm10___Trp53", None, "other_species"),
        ("ENSRNOG00000010756", None, "other_species"),
        ("ERCC-00002", None, "spike_in"),
        ("ENSSASG00005000004", None, "viral"),
        ("SARS-CoV-2_S", None, "viral"),
        ("nCoV", None, "viral"),
        ("SARS-CoV-2", None, "viral"),
        ("EBV_LMP1", None, "viral"),
        ("RSV", None, "viral"),
        ("AC020656.1", "ENSG00000257764", "alias"),  # in Ensembl 93
        ("Trp53", None, "unknown"),
        ("gapdh", None, "unknown"),
        ("17", None, "unknown"),
        ("", None, "unknown"),
    ],
)
def test_human_name(name: str, gene: str | None, status: str) -> None:
    assert one(name) == (gene, status)


@pytest.mark.parametrize(
    ("name", "symbol", "status"),
    [
        ("3-Mar", "MARCHF3", "alias"),
        ("Mar-03", "MARCHF3", "alias"),
        ("2019-03-03 00:00:00", "MARCHF3", "alias"),
        ("7-Sep", "SEPTIN7", "alias"),
        ("15-Sep", "SELENOF", "alias"),
        ("1-Mar", None, "ambiguous"),  # MARCH1 and MARC1 (and MAR1) all become this date
        ("2-Mar", None, "ambiguous"),
        ("1-Sep", "SEPTIN1", "alias"),  # SEPT1; SEP1 is only an alias, of two genes
        ("1-Dec", "DELEC1", "alias"),
        ("1-Oct", None, "unknown"),
        ("31-Jan", None, "unknown"),
        ("2019-13-01", None, "unknown"),
        ("3/3/2021", "MARCHF3", "alias"),
        ("9/7/21", "SEPTIN7", "alias"),  # July has no genes
        ("13/9/2021", "SEPTIN7P2", "alias"),
    ],
)
def test_dates_made_by_a_spreadsheet(name: str, symbol: str | None, status: str) -> None:
    mapping = harmonise([name], organism="human")
    assert (mapping.features[0].symbol if mapping.features else None, mapping.status[0]) == (symbol, status)


@pytest.mark.parametrize(
    ("name", "symbol", "status"),
    [
        ("Trp53", "Trp53", "matched"),
        ("ENSMUSG00000059552.14", "Trp53", "matched"),
        ("mm10___Trp53", "Trp53", "matched"),
        ("Sept2", "Septin2", "alias"),
        ("2-Sep", "Septin2", "alias"),
        ("7-Mar", "Marchf7", "alias"),
        ("2023-09-07", "Septin7", "alias"),
        ("Aars", "Aars1", "alias"),
        ("H2.K1", "H2-K1", "matched"),
        ("TP53", None, "unknown"),
        ("ENSG00000141510", None, "other_species"),
    ],
)
def test_mouse_name(name: str, symbol: str | None, status: str) -> None:
    mapping = harmonise([name], organism="mouse")
    assert (mapping.features[0].symbol if mapping.features else None, mapping.status[0]) == (symbol, status)


def test_an_id_decides_over_a_symbol_and_the_disagreement_is_counted() -> None:
    mapping = harmonise([TP53, "BRCA1"], organism="human", symbols=["ACTB", ACTB])
    assert [feature.id for feature in mapping.features] == [TP53, ACTB]
    report = mapping.report(np.ones(2))
    assert report.conflicts == 1
    assert report.examples["conflicts"] == (f"{TP53} → TP53",)


def test_a_symbol_maps_a_retired_id() -> None:
    assert one("ENSG00000999999", symbol="TP53") == (TP53, "replaced")
    assert one("ENSG00000999999", symbol="P53") == (TP53, "replaced")
    assert one("ENSG00000999999", symbol="MT1") == (None, "retired")


def test_aliases_can_be_refused() -> None:
    assert one("P53", aliases=False) == (None, "unknown")
    assert one("3-Mar", aliases=False) == (None, "unknown")
    assert one("TP53", aliases=False) == (TP53, "matched")


def test_suffixes_that_make_names_unique_need_their_base() -> None:
    together = harmonise(["TP53", "TP53-1", "ACTB", "ACTB.1", "MT1-1"], organism="human")
    assert together.target.tolist() == [0, 0, 1, 1, -1]
    assert one("TP53-1") == (None, "unknown")
    assert one("NKX2-1")[1] == "matched"


def test_dots_stand_for_dashes_only_where_no_dash_is_left() -> None:
    mangled = harmonise(["NKX6.1", "TP53"], organism="human")
    assert mangled.features[0].symbol == "NKX6-1"
    mixed = harmonise(["NKX6.1", "HLA-A"], organism="human")
    assert mixed.status[0] is Status.AMBIGUOUS


def test_duplicates_are_summed_or_kept() -> None:
    names = ["TP53", "ACTB", "P53", "TP53"]
    counts = sparse.csr_matrix(np.array([[200, 1, 100, 0], [0, 2, 0, 7]], dtype=np.uint8))
    summed = harmonise(names, organism="human")
    result = summed.apply(counts)
    assert result.toarray().tolist() == [[300, 1], [7, 2]]
    report = summed.report(np.asarray(counts.sum(0)).ravel())
    assert (report.summed, report.genes_out) == (2, 2)
    kept = harmonise(names, organism="human", config=GeneConfig(duplicates="keep"))
    assert [feature.id for feature in kept.features] == [TP53, ACTB, f"{TP53}-1", f"{TP53}-2"]
    assert np.array_equal(kept.apply(counts).toarray(), counts.toarray())
    again = harmonise([feature.id for feature in kept.features], organism="human")
    assert [feature.id for feature in again.features] == [TP53, ACTB]


def test_orthologs_are_replaced_one_to_one() -> None:
    # Ensembl has several human genes for the mouse's Gapdh: none is chosen.
    mapping = harmonise(["Trp53", "Cd3e", "Gapdh"], organism="mouse", config=GeneConfig(ortholog_to="human"))
    assert [(f.symbol, f.organism, f.release) for f in mapping.features] == [
        ("TP53", "human", "GENCODE v48"),
        ("CD3E", "human", "GENCODE v48"),
    ]
    assert mapping.status[2] is Status.NO_ORTHOLOG
    back = harmonise(["TP53"], organism="human", config=GeneConfig(ortholog_to="mouse"))
    assert back.features[0].symbol == "Trp53"


def test_report_counts_everything_and_refuses_above_the_limit() -> None:
    names = ["TP53", "P53", "MT1", "nonsense", "ERCC-00002"]
    report = harmonise(names, organism="human").report(np.array([10.0, 5.0, 3.0, 2.0, 80.0]))
    assert report.genes == {"matched": 1, "alias": 1, "ambiguous": 1, "unknown": 1, "spike_in": 1}
    assert sum(report.umis.values()) == 100
    assert report.genes_lost == pytest.approx(2 / 4)
    assert report.umis_lost == pytest.approx(5 / 20)
    assert report.examples["alias"] == ("P53 → TP53",)
    assert report.examples["ambiguous"][0].startswith("MT1 (MT1A or ")
    report.check(GeneConfig(max_umis_lost=0.25, max_genes_lost=0.5))
    with pytest.raises(GeneMappingError, match=r"25\.0% of the UMIs") as caught:
        report.check(GeneConfig(max_umis_lost=0.24), where="cells.h5ad")
    assert caught.value.where == "cells.h5ad"
    assert "nonsense" in caught.value.fix
    assert type(report).model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize(
    ("names", "fix"),
    [
        (["Trp53", "Gapdh", "Actb", "Cd3e"], "organism: mouse"),
        (["0", "1", "2", "3"], "numbers"),
        (["chr1:9963-10665", "1-9963-10665", "chrX:10-20"], "peaks"),
        (["foo", "bar"], "foo"),
    ],
)
def test_wrong_names_are_refused_with_the_likely_cause(names: list[str], fix: str) -> None:
    report = harmonise(names, organism="human").report(np.ones(len(names)))
    with pytest.raises(GeneMappingError, match="None of the") as caught:
        report.check(GeneConfig(max_umis_lost=1, max_genes_lost=1))
    assert fix in caught.value.fix


def test_bad_arguments_are_typed_errors() -> None:
    with pytest.raises(GeneMappingError, match="2 symbols were given for 1 names"):
        harmonise(["TP53"], organism="human", symbols=["TP53", "ACTB"])
    with pytest.raises(ConfigError, match="no gene table"):
        harmonise(["TP53"], organism="zebrafish")  # type: ignore[arg-type]
    mapping = harmonise(["TP53"], organism="human")
    with pytest.raises(GeneMappingError, match="2 columns"):
        mapping.apply(sparse.csr_matrix(np.ones((1, 2))))
    with pytest.raises(GeneMappingError, match="2 column sums"):
        mapping.report(np.ones(2))


def test_no_names_at_all() -> None:
    mapping = harmonise([], organism="human")
    assert mapping.features == ()
    with pytest.raises(GeneMappingError, match="None of the 0"):
        mapping.report([]).check(GeneConfig())


def test_detect_organism() -> None:
    assert detect_organism(["TP53", "ACTB", "foo"]) == "human"
    assert detect_organism(["Trp53", "ENSMUSG00000059552", "mm10_Actb"]) == "mouse"
    assert detect_organism(["foo", "bar"]) is None
    assert detect_organism(["hg19_TP53", "mm10_Trp53"]) is None
    assert detect_organism([]) is None
    assert detect_organism(["tp53", "p53", "actb"]) is None
    assert detect_organism(["mm10_actb", "mm10_aqp4"]) == "mouse"


def test_lower_case_is_of_the_organism_that_is_named_and_only_if_all_names_are_so() -> None:
    table = load_table("mouse")
    unique = [symbol for symbol, row in table.row_of_symbol.items() if row >= 0][:2000]
    lower = [symbol.lower() for symbol in unique]
    mapping = harmonise(lower, organism="mouse", lower_case=True)
    assert [feature.id for feature in mapping.features] == [table.ids[table.row_of_symbol[name]] for name in unique]
    assert lower_case_genes(lower)["mouse"] == 1.0
    assert lower_case_genes([*lower, "Actb"]) == {"human": 0.0, "mouse": 0.0}
    # TH is an enzyme, but "th" may be an alias of another gene: the approved symbol decides.
    (th,) = harmonise(["th"], organism="human", lower_case=True).features
    assert th.symbol == "TH"
    for names, options in (
        (["aqp4", "acss1"], {}),
        (["aqp4", "acss1", "Actb"], {"lower_case": True}),
        (["aqp4", "acss1"], {"lower_case": True, "config": GeneConfig(aliases=False)}),
    ):
        known = {feature.symbol for feature in harmonise(names, organism="mouse", **options).features}
        assert known <= {"Actb"}


def test_sixty_thousand_names_take_well_below_a_second() -> None:
    table = load_table("human")
    names = [f"hg19_{gene}.3" for gene in table.ids[:60_000]]
    start = time.process_time()
    mapping = harmonise(names, organism="human")
    assert time.process_time() - start < 2  # about 0.4 s on a free core
    assert (mapping.target >= 0).all()


_POOL = st.sampled_from(
    ["TP53", "P53", TP53, f"{TP53}.4", "hg19_TP53", "ACTB", "MT1", "SEPT2", "1-Mar", "junk", "ERCC-00002", "CD3E", ""]
)


@settings(max_examples=60, deadline=None)
@given(names=st.lists(_POOL, max_size=12), seed=st.integers(0, 99), keep=st.booleans())
def test_counts_are_conserved(names: list[str], seed: int, keep: bool) -> None:
    """Every UMI is in its feature or in the report's loss, against a slow sum over columns."""
    dense = np.random.default_rng(seed).integers(0, 60_000, size=(3, len(names))).astype(np.uint16)
    mapping = harmonise(names, organism="human", config=GeneConfig(duplicates="keep" if keep else "sum"))
    result = mapping.apply(sparse.csr_matrix(dense))
    expected = np.zeros((3, len(mapping.features)), dtype=np.int64)
    for column, target in enumerate(mapping.target):
        if target >= 0:
            expected[:, target] += dense[:, column]
    assert np.array_equal(result.toarray(), expected)
    assert result.has_sorted_indices
    assert len({feature.id for feature in mapping.features}) == len(mapping.features)
    first = [int(np.flatnonzero(mapping.target == i)[0]) for i in range(len(mapping.features))]
    assert first == sorted(first)
    report = mapping.report(dense.sum(0))
    assert sum(report.genes.values()) == len(names)
    assert sum(report.umis.values()) == dense.sum()
    kept = (Status.MATCHED, Status.ALIAS, Status.REPLACED)
    assert sum(report.umis.get(status, 0.0) for status in kept) == result.sum()


@settings(max_examples=60, deadline=None)
@given(row=st.integers(0, 78_000), version=st.integers(1, 30), prefix=st.sampled_from(["", "GRCh38_", "hg19___"]))
def test_any_spelling_of_an_id_means_the_same_gene(row: int, version: int, prefix: str) -> None:
    gene = load_table("human").ids[row]
    plain = harmonise([gene], organism="human")
    spelt = harmonise([f"{prefix}{gene}.{version}"], organism="human")
    assert spelt.features == plain.features
    assert len(plain.features) == 1


def test_real_data_lose_little(shared_data: Path) -> None:
    import anndata

    for path, most in (
        ("kang_ifnb/kang_ctrl_12261c_1287g_counts_ensembl.h5ad", 0.005),
        ("pbmc_3chemistries/pbmc_3p1_3p2_5p_1200c_1767g_counts.h5ad", 0.005),
        ("papalexi_eccite/papalexi_eccite_20729c_299g_counts.h5ad", 0.005),
    ):
        data = anndata.read_h5ad(shared_data / path)
        mapping = harmonise(data.var_names.tolist(), organism="human")
        report = mapping.report(np.asarray(data.X.sum(0)).ravel())
        report.check(GeneConfig())
        assert report.umis_lost < most, path
        assert detect_organism(data.var_names.tolist()) == "human"
