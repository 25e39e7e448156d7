"""Peaks: one identity for every spelling, the right assembly, and fixed sets of regions."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmill.errors import ConfigError, GeneMappingError, SourceError
from cellmill.genes import PeakConfig, Regions, Status, assembly_of, likely_modality, read_regions
from cellmill.genes.assembly import chromosome, chromosome_lengths
from cellmill.genes.peaks import is_peak, map_peaks
from cellmill.genes.regions import nearest_regions


@pytest.mark.parametrize(
    "name",
    [
        "1-9963-10665",
        "chr1:9963-10665",
        "chr1_9963_10665",
        "chr1-9963-10665",
        "1:9963-10665",
        "Chr1:9,963-10,665",
        "chr1:9963..10665",
        " chr1:9963-10665 ",
        "chr1\t9963\t10665",
        "chr1  9963 10665",
        "GRCh38_chr1\t9963\t10665\n",
        "GRCh38_chr1:9963-10665",
        "hg38_1-9963-10665",
        "hg38:chr1:9963-10665",
    ],
)
def test_spellings_of_one_peak(name: str) -> None:
    mapping = map_peaks([name], assembly="hg38")
    (feature,) = mapping.features
    assert (feature.id, feature.symbol) == ("hg38:chr1:9963-10665", "chr1:9963-10665")
    assert (feature.modality, feature.organism, feature.release) == ("atac", "human", "hg38")
    assert is_peak(name)


@pytest.mark.parametrize(
    ("name", "assembly", "identity"),
    [
        ("MT-100-200", "hg38", "hg38:chrM:100-200"),
        ("chrM:100-200", "mm10", "mm10:chrM:100-200"),
        ("x-100-200", "mm39", "mm39:chrX:100-200"),
        ("GL000194.1-100-200", "hg38", "hg38:GL000194.1:100-200"),
        ("chr14_GL000194v1_random:100-200", "hg38", "hg38:GL000194.1:100-200"),
        ("chr4_gl000194_random:100-200", "hg19", "hg19:GL000194.1:100-200"),
        ("chrUn_KI270742v1_100_200", "hg38", "hg38:KI270742.1:100-200"),
        ("JH584304.1:100-200", "mm10", "mm10:JH584304.1:100-200"),
    ],
)
def test_chromosomes_and_contigs_have_one_name(name: str, assembly: str, identity: str) -> None:
    assert map_peaks([name], assembly=assembly_of(assembly)).features[0].id == identity


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("chr20:100-200", "unknown"),  # mice have 19
        ("hs37d5-100-200", "unknown"),
        ("chr1:200-100", "unknown"),
        ("chr1:100-100", "unknown"),
        ("peak_17", "unknown"),
        ("Gapdh", "unknown"),
        ("", "unknown"),
        ("hg38_chr1:100-200", "other_species"),
        ("mm39_chr1:100-200", "unknown"),
        ("chr19:61431566-61431600", "outside"),
        ("chr19:61431565-61439999", "matched"),  # a window may reach beyond the end
    ],
)
def test_what_is_no_peak_of_mm10(name: str, status: str) -> None:
    assert map_peaks([name], assembly="mm10").status[0].value == status


def test_two_spellings_in_one_data_set_are_summed() -> None:
    mapping = map_peaks(["chr1:1-9", "1-1-9", "chr2:1-9"], assembly="hg38")
    assert mapping.target.tolist() == [0, 0, 1]
    report = mapping.report(np.array([3.0, 4.0, 5.0]))
    assert (report.summed, report.umis_summed, report.modality) == (1, 4.0, "atac")


def test_names_of_assemblies() -> None:
    assert [assembly_of(n) for n in ("GRCh38", "hg38", "GRCh38.p14", "GRCm39", "b37")] == [
        "hg38",
        "hg38",
        "hg38",
        "mm39",
        "hg19",
    ]
    for name in (None, "", "rn6"):
        with pytest.raises(ConfigError) as caught:
            assembly_of(name, "a.h5ad")
        assert "hg38" in caught.value.fix
    # The sum of the chromosomes of GRCh38, GRCh37, GRCm38 and GRCm39, as the Genome Reference Consortium gives it.
    totals = {"hg38": 3_088_269_832, "hg19": 3_095_677_412, "mm10": 2_725_521_370, "mm39": 2_723_414_844}
    for name, total in totals.items():
        lengths = chromosome_lengths(assembly_of(name))
        assert sum(lengths.values()) - lengths["chrM"] == total, name
    assert chromosome("chr23", "hg38") is None


def test_peaks_of_another_assembly_are_refused() -> None:
    names = ["chr1:100-200", "chr1:249240000-249240500"]  # hg19's chromosome 1 is longer
    assert map_peaks(names, assembly="hg19").report(np.ones(2)).genes == {"matched": 2}
    report = map_peaks(names, assembly="hg38").report(np.ones(2))
    with pytest.raises(GeneMappingError, match="not of hg38") as caught:
        report.check(PeakConfig(max_peaks_lost=1, max_counts_lost=1))
    assert "another `assembly`" in caught.value.fix


def test_a_list_of_names_looks_like_what_it_is() -> None:
    assert likely_modality(["1-9963-10665", "chrX:10-20", "peak"]) == "atac"
    assert likely_modality(["CD3_TotalSeqB", "CD4_TotalSeqB", "CD19"]) == "protein"
    assert likely_modality(["TP53", "HLA-A", "NKX2-1", "ENSG00000141510.12", "RP11-1-2"]) == "rna"
    assert likely_modality([]) == "rna"


BED = b"""browser position chr1:1-100
track name=x
# comment
chr1\t100\t200\tpromoter\t0\t+
1\t250\t300\t.
chr2\t0\t50
"""


def test_a_bed_file_is_read() -> None:
    regions = read_regions(BED, "hg38", "a.bed")
    assert list(
        zip(regions.chromosomes, regions.starts.tolist(), regions.ends.tolist(), regions.names, strict=True)
    ) == [
        ("chr1", 100, 200, "promoter"),
        ("chr1", 250, 300, ""),
        ("chr2", 0, 50, ""),
    ]
    packed = read_regions(gzip.compress(BED), "hg38", "a.bed.gz")
    assert packed.chromosomes == regions.chromosomes
    assert packed.sha256 != regions.sha256


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no regions"),
        (b"chr1\t5\n", "Line 1"),
        (b"chr99\t5\t6\n", "no region of hg38"),
        (b"chr1\ta\tb\n", "Line 1"),
        (b"chr1\t6\t5\n", "is empty"),
        (b"chr1\t5\t6\n1\t5\t6\n", "line 2 stands twice"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"\x1f\x8b\x00broken", "cannot be read"),
    ],
)
def test_bad_bed_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        read_regions(data, "hg38", "a.bed")
    assert caught.value.where == "a.bed"


def test_peaks_go_to_regions_with_a_report_of_the_loss() -> None:
    regions = read_regions(b"chr1\t100\t200\tA\nchr1\t210\t300\tB\nchr2\t0\t1000\tC\n", "hg38", "a.bed")
    names = [
        "chr1:90-180",  # A, 80 of 90
        "chr1:150-300",  # A and B: B has 90 of 90
        "chr1:190-215",  # too little of either
        "chr1:400-500",  # none
        "2-10-20",  # inside of C
        "chr2:500-600",  # C too
        "nonsense",
    ]
    mapping = map_peaks(names, assembly="hg38", regions=regions)
    assert [feature.symbol for feature in mapping.features] == ["A", "B", "C"]
    assert mapping.features[0].id == "hg38:chr1:100-200"
    assert mapping.target.tolist() == [0, 1, -1, -1, 2, 2, -1]
    report = mapping.report(np.array([10.0, 20.0, 1.0, 2.0, 5.0, 7.0, 3.0]))
    assert report.genes == {"matched": 3, "split": 1, "no_region": 2, "unknown": 1}
    assert report.umis == {"matched": 22.0, "split": 20.0, "no_region": 3.0, "unknown": 3.0}
    assert (report.genes_out, report.summed, report.umis_summed) == (3, 1, 7.0)
    assert report.umis_lost == pytest.approx(6 / 48)
    assert report.examples["split"] == ("chr1:150-300 → B",)
    report.check(PeakConfig())
    with pytest.raises(GeneMappingError, match=r"12\.5% of the counts") as caught:
        report.check(PeakConfig(max_counts_lost=0.1))
    assert "peaks.max_counts_lost" in caught.value.fix


def _slow(
    peaks: list[tuple[str, int, int]], regions: list[tuple[str, int, int]], least: float
) -> tuple[list[int], list[int]]:
    """Look at every pair, base by base."""
    best, enough = [], []
    for name, start, end in peaks:
        shared = [len(set(range(start, end)) & set(range(a, b))) if name == other else 0 for other, a, b in regions]
        good = [
            n if n and n >= least * min(end - start, b - a) else 0 for n, (_, a, b) in zip(shared, regions, strict=True)
        ]
        enough.append(sum(n > 0 for n in good))
        best.append(good.index(max(good)) if any(good) else -1)
    return best, enough


_INTERVAL = st.tuples(st.sampled_from(["chr1", "chr2"]), st.integers(0, 60), st.integers(1, 25)).map(
    lambda one: (one[0], one[1], one[1] + one[2])
)


@settings(max_examples=300)
@given(
    peaks=st.lists(_INTERVAL, max_size=12),
    regions=st.lists(_INTERVAL, min_size=1, max_size=12, unique=True),
    least=st.sampled_from([0.01, 0.25, 0.5, 1.0]),
)
def test_overlaps_are_those_that_a_slow_search_finds(
    peaks: list[tuple[str, int, int]], regions: list[tuple[str, int, int]], least: float
) -> None:
    """Also where regions overlap and contain each other."""
    places, starts, ends = zip(*regions, strict=True)
    own = Regions("hg38", places, np.array(starts), np.array(ends), ("",) * len(regions), "")
    best, n = nearest_regions(
        [peak[0] for peak in peaks],
        np.array([peak[1] for peak in peaks], np.int64),
        np.array([peak[2] for peak in peaks], np.int64),
        own,
        least,
    )
    assert (best.tolist(), n.tolist()) == _slow(peaks, regions, least)


def test_half_a_million_peaks_find_their_regions_quickly() -> None:
    rng = np.random.default_rng(0)
    lengths = chromosome_lengths("hg38")
    names = rng.choice(list(lengths)[:22], 500_000)
    starts = rng.integers(0, 46_000_000, 500_000)
    order = np.lexsort((starts, names))
    regions = Regions("hg38", tuple(names[order]), starts[order], starts[order] + 350, ("",) * 500_000, "")
    best, n = nearest_regions(names.tolist(), starts, starts + 500, regions, 0.5)
    assert (best >= 0).all()  # each peak begins where a region does
    assert (n >= 1).all()


def test_regions_need_their_assembly() -> None:
    with pytest.raises(ValueError, match="belong together"):
        PeakConfig(regions="a.bed")
    assert PeakConfig(regions="a.bed", regions_assembly="hg38").min_overlap == 0.5
    assert (
        Status.SPLIT
        in map_peaks(
            ["chr1:0-100"], assembly="hg38", regions=read_regions(b"chr1\t0\t50\nchr1\t50\t100\n", "hg38", "")
        ).status
    )
