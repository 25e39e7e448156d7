"""Genes, peaks and proteins: bundled tables, harmonisation with a report, and the vocabulary of tokens."""

from cellmill.genes.assembly import Assembly, assembly_of
from cellmill.genes.columns import ColumnMapping, map_columns
from cellmill.genes.config import GeneConfig, Organism, PeakConfig, ProteinConfig
from cellmill.genes.feature import Feature
from cellmill.genes.harmonisation import harmonise
from cellmill.genes.mapping import GeneMapping
from cellmill.genes.modality import MODALITIES, Modality, likely_modality
from cellmill.genes.organism import detect_organism, lower_case_genes
from cellmill.genes.regions import Regions, read_regions
from cellmill.genes.report import GeneReport
from cellmill.genes.status import Status
from cellmill.genes.tables import GeneTable, load_table, sources
from cellmill.genes.vocabulary import N_SPECIALS, SPECIALS, Vocabulary
from cellmill.genes.vocabulary_store import VocabularyStore

__all__ = [
    "MODALITIES",
    "N_SPECIALS",
    "SPECIALS",
    "Assembly",
    "ColumnMapping",
    "Feature",
    "GeneConfig",
    "GeneMapping",
    "GeneReport",
    "GeneTable",
    "Modality",
    "Organism",
    "PeakConfig",
    "ProteinConfig",
    "Regions",
    "Status",
    "Vocabulary",
    "VocabularyStore",
    "assembly_of",
    "detect_organism",
    "harmonise",
    "likely_modality",
    "load_table",
    "lower_case_genes",
    "map_columns",
    "read_regions",
    "sources",
]
