"""Which organism a list of gene names belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

import numpy as np

from cellmill.genes.config import Organism
from cellmill.genes.spelling import take_apart
from cellmill.genes.tables import load_table

_SAMPLE = 5000
_LEAST = 0.1
_CLEAR = 3.0


def detect_organism(names: Sequence[str]) -> Organism | None:
    """Return the organism whose genes are clearly more among the names, None where neither is clear.

    At least a tenth of the names must be genes of the organism, and three times as many as of the other. A sample
    of about 5,000 names is looked at. Symbols that are all in lower case say nothing: they may be of either.
    """
    sample = _sample(names)
    if in_lower_case(sample):
        sample = [name if take_apart(name).organism is not None else "" for name in sample]
    human = sum(_is_gene(name, "human") for name in sample)
    mouse = sum(_is_gene(name, "mouse") for name in sample)
    if human >= max(1.0, _LEAST * len(sample), _CLEAR * mouse):
        return "human"
    if mouse >= max(1.0, _LEAST * len(sample), _CLEAR * human):
        return "mouse"
    return None


def in_lower_case(names: Iterable[str]) -> bool:
    """Return whether no name has a capital letter: symbols of human and mouse differ by these alone."""
    return all(name == name.lower() for name in names)


def lower_case_genes(names: Sequence[str]) -> dict[Organism, float]:
    """Return the share of names that are genes of each organism in lower case; 0 where some have capital letters."""
    sample = _sample(names)
    lower = in_lower_case(sample)
    return {
        organism: float(np.mean([lower and take_apart(name).symbol in table.row_of_lower_case for name in sample]))
        if sample
        else 0.0
        for organism in get_args(Organism)
        for table in [load_table(organism)]
    }


def _sample(names: Sequence[str]) -> list[str]:
    return [str(name) for name in names[:: max(1, len(names) // _SAMPLE)]]


def _is_gene(name: str, organism: Organism) -> bool:
    table = load_table(organism)
    spelling = take_apart(name)
    if spelling.organism is not None:
        return spelling.organism == organism
    if spelling.ensembl is not None:
        return spelling.ensembl.startswith("ENSG0" if organism == "human" else "ENSMUSG0")
    return spelling.symbol in table.row_of_symbol or spelling.symbol in table.row_of_other
