"""What became of an input column."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """What became of one input column; the first four are kept, the others have no feature."""

    MATCHED = "matched"
    """The id or the approved symbol is in the release; a peak is a region of the assembly, or belongs to one."""
    ALIAS = "alias"
    """A previous symbol, an alias, a symbol in lower case, or a date made by a spreadsheet, of one gene only; a protein
    in a panel's words."""
    REPLACED = "replaced"
    """An id that the release does not have, of a gene that it has."""
    SPLIT = "split"
    """A peak that lies on several regions of a fixed set; all of it went to the one that it shares most with."""
    RETIRED = "retired"
    """An Ensembl id that the release does not have, and nothing says what became of it."""
    AMBIGUOUS = "ambiguous"
    """A name of several genes."""
    UNKNOWN = "unknown"
    """No gene of the organism goes by this name; no region or antibody is written so."""
    OTHER_SPECIES = "other_species"
    """A gene of another organism, by its id or its assembly prefix."""
    NO_ORTHOLOG = "no_ortholog"
    """A gene without a one-to-one ortholog in the organism that was asked for."""
    OUTSIDE = "outside"
    """A peak beyond the end of its chromosome: it was called in another assembly."""
    NO_REGION = "no_region"
    """A peak that lies on no region of the fixed set, or not enough of it does."""
    SPIKE_IN = "spike_in"
    """A spike-in control."""
    VIRAL = "viral"
    """A viral feature."""
    ISOTYPE_CONTROL = "isotype_control"
    """An antibody that binds nothing."""
    OTHER_MODALITY = "other_modality"
    """Neither a gene nor a peak nor a protein: a guide, a tag, a feature of the maker's own."""


STATUSES: tuple[Status, ...] = tuple(Status)
KEPT = frozenset({Status.MATCHED, Status.ALIAS, Status.REPLACED, Status.SPLIT})
CONTROLS = frozenset({Status.SPIKE_IN, Status.VIRAL, Status.ISOTYPE_CONTROL, Status.OTHER_MODALITY})
"""Dropped on purpose: they count neither as kept nor as lost."""
LOST = frozenset(STATUSES) - KEPT - CONTROLS
CODE: dict[Status, int] = {status: i for i, status in enumerate(STATUSES)}
