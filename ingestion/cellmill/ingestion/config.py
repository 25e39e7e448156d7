"""What to ingest, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from cellmill.cluster import ClusterConfig
from cellmill.config import Config
from cellmill.genes import GeneConfig, PeakConfig, ProteinConfig


class QualityConfig(Config):
    """Cells outside these limits are left out, and counted by reason.

    Where other modalities were measured beside genes, the limits are on genes alone; without any gene, on all features.

    Attributes
    ----------
    min_genes, max_genes
        Expressed genes of a cell, after harmonisation: ``n_genes`` of the atlas.
    min_counts, max_counts
        UMIs of a cell, after harmonisation: ``n_counts`` of the atlas.
    max_mito_share
        Largest share of a cell's UMIs in mitochondrial genes; cells of data sets that measured none pass.
    """

    min_genes: int = Field(default=1, ge=0)
    max_genes: int | None = Field(default=None, ge=1)
    min_counts: int = Field(default=1, ge=0)
    max_counts: int | None = Field(default=None, ge=1)
    max_mito_share: float | None = Field(default=None, ge=0, le=1)


class DuplicateConfig(Config):
    """What happens to cells whose counts equal those of a cell that came earlier, in any data set.

    Attributes
    ----------
    policy
        ``keep_first`` hides later ones, so that each cell is there once. ``drop`` hides every new cell that has an
        equal, the first among the new ones included; what the atlas had stays as it was. ``mark`` keeps later ones
        with ``is_duplicate`` set. ``keep`` does not look.
    min_genes
        Cells with fewer genes (``n_genes``) are duplicates only if their barcodes are equal as well: nearly empty cells
        are often alike by chance.
    """

    policy: Literal["keep_first", "drop", "mark", "keep"] = "keep_first"
    min_genes: int = Field(default=200, ge=0)


class JoinConfig(Config):
    """A further matrix of the same cells: proteins or peaks beside genes.

    Attributes
    ----------
    path
        Its file, whose cells are found by their barcodes; without it, the matrix is in the same file.
    counts
        Where the counts are, also ``obsm/NAME``; needed in the same file.
    missing
        What happens to cells that this matrix lacks: ``drop`` leaves them out, ``keep`` keeps them without its counts.
        Either way they are counted.
    format, genes, symbols, modality, group, features, genome, assembly
        As in `SourceConfig`.
    """

    path: str | None = None
    format: str = "auto"
    counts: str = "auto"
    genes: str = "auto"
    symbols: str | None = None
    modality: Literal["auto", "rna", "atac", "protein"] = "auto"
    group: str | None = None
    features: str | None = None
    genome: str | None = None
    assembly: str | None = None
    missing: Literal["drop", "keep"] = "drop"


class SourceConfig(Config):
    """One data set.

    Attributes
    ----------
    path
        The file or folder, or a pattern (``data/*.h5ad``) of those that together are the data set: a path, or the URL
        of an object store (``s3://``, ``gs://``, ``az://``) or of a web server (``https://``); or a release of the
        CELLxGENE Census (``census:2025-11-08/homo_sapiens``).
    format
        The format, by the name of its plug-in; ``auto`` looks into the file.
    dataset
        Its name in the atlas; the file's name by default, and of a pattern that ends with a fixed name
        (``runs/*/outs``) the names that it leaves open.
    organism
        ``auto`` recognises human and mouse by the gene names.
    counts
        Where the raw counts are: ``X``, ``raw.X``, ``layers/NAME``, or ``auto``, which takes the first that
        holds counts of a layer named so (``counts``, ``raw_counts``, ...), ``raw.X`` and ``X``, and says which.
    genes
        The column of ``var`` with gene names; ``index`` takes the index, ``auto`` what holds the ids in this format.
    symbols
        A second column of ``var``, asked where the first does not lead to a gene.
    modality
        What the features are, where neither the format nor ``var`` says so; ``auto`` takes regions of a genome for
        peaks, antibodies' tags for proteins, and all else for genes.
    group
        The measurement of a TileDB-SOMA experiment (``RNA``), or the modality of a MuData file by its name there.
    features
        The table of genes of Parquet and Arrow files; without it, one that lies beside them is found by its name.
    genome
        The genome to read, of a file that holds several.
    assembly
        The assembly that peaks are given in: ``hg38``, ``hg19``, ``mm10`` or ``mm39``, or another of their names.
        Needed where neither the file says it, as 10x's do, nor the names (``GRCh38_chr1:9963-10665``).
    obs
        Columns of ``obs`` to keep, and their names in the atlas (``old: new``), or ``all``; columns of the CELLxGENE
        schema are kept without being named.
    join
        Further matrices of the same cells.
    where
        Predicate over the file's own columns of obs, see `cellmill.atlas.predicate`; other cells are left out, and
        counted. For instance ``is_primary_data``.
    licence
        Licence of the data, recorded with every shard.
    """

    path: str
    format: str = "auto"
    dataset: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    organism: Literal["auto", "human", "mouse"] = "auto"
    counts: str = "auto"
    genes: str = "auto"
    symbols: str | None = None
    modality: Literal["auto", "rna", "atac", "protein"] = "auto"
    group: str | None = None
    features: str | None = None
    genome: str | None = None
    assembly: str | None = None
    obs: dict[str, str] | Literal["all"] = Field(default_factory=dict)
    join: tuple[JoinConfig, ...] = ()
    where: str | None = None
    licence: str = "unknown"


class IngestConfig(Config):
    """A whole ingestion.

    Attributes
    ----------
    atlas
        Where the atlas is or will be: a path or an object store URL.
    sources
        The data sets.
    output
        Directory of the run; by default one of its own below the atlas's ``reports``, or below the working directory
        for a remote atlas.
    genes, peaks, proteins
        What becomes of features of each kind, and how much may be lost on the way.
    quality, duplicates
        Limits on cells, and what happens to those that are there already.
    require_licence
        Licences that a source may have; a source of another one is refused. Empty requires none.
    shard_cells
        Cells in a shard.
    task_memory_mb
        Memory in MB that a task may use for cells, copies included; larger files are read in more chunks. The process
        itself, with its libraries, takes about 550 MB beside it, of which processes of a machine share 200.
    backend
        ``ray`` runs chunks as Ray Data tasks, ``local`` runs them in this process.
    cluster
        Which Ray cluster.
    """

    atlas: str
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    output: Path | None = None
    genes: GeneConfig = GeneConfig()
    peaks: PeakConfig = PeakConfig()
    proteins: ProteinConfig = ProteinConfig()
    quality: QualityConfig = QualityConfig()
    duplicates: DuplicateConfig = DuplicateConfig()
    require_licence: tuple[str, ...] = ()
    shard_cells: int = Field(default=65_536, ge=1)
    task_memory_mb: int = Field(default=1024, ge=64)
    backend: Literal["ray", "local"] = "ray"
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _licences(self) -> Self:
        for source in self.sources:
            if self.require_licence and source.licence not in self.require_licence:
                raise ValueError(
                    f"{source.path} has the licence {source.licence!r}, and `require_licence` lets in only "
                    f"{', '.join(self.require_licence)}"
                )
        return self
