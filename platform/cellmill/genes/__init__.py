"""Genes: bundled tables, harmonisation with a report, and the vocabulary of tokens."""

from cellmill.genes.config import GeneConfig, Organism
from cellmill.genes.feature import Feature
from cellmill.genes.harmonisation import harmonise
from cellmill.genes.mapping import GeneMapping
from cellmill.genes.organism import detect_organism
from cellmill.genes.report import GeneReport
from cellmill.genes.status import Status
from cellmill.genes.tables import GeneTable, load_table, sources
from cellmill.genes.vocabulary import N_SPECIALS, SPECIALS, Vocabulary
from cellmill.genes.vocabulary_store import VocabularyStore

__all__ = [
    "N_SPECIALS",
    "SPECIALS",
    "Feature",
    "GeneConfig",
    "GeneMapping",
    "GeneReport",
    "GeneTable",
    "Organism",
    "Status",
    "Vocabulary",
    "VocabularyStore",
    "detect_organism",
    "harmonise",
    "load_table",
    "sources",
]
