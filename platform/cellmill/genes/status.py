"""What became of an input column."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """What became of one input column; the first three are kept, the others have no feature."""

    MATCHED = "matched"
    """The id or the approved symbol is in the release."""
    ALIAS = "alias"
    """A previous symbol, an alias, or a date made by a spreadsheet, of one gene only."""
    REPLACED = "replaced"
    """An id that the release does not have, of a gene that it has."""
    RETIRED = "retired"
    """An Ensembl id that the release does not have, and nothing says what became of it."""
    AMBIGUOUS = "ambiguous"
    """A name of several genes."""
    UNKNOWN = "unknown"
    """No gene of the organism goes by this name."""
    OTHER_SPECIES = "other_species"
    """A gene of another organism, by its id or its assembly prefix."""
    NO_ORTHOLOG = "no_ortholog"
    """A gene without a one-to-one ortholog in the organism that was asked for."""
    SPIKE_IN = "spike_in"
    """A spike-in control."""
    VIRAL = "viral"
    """A viral feature."""


STATUSES: tuple[Status, ...] = tuple(Status)
KEPT = frozenset({Status.MATCHED, Status.ALIAS, Status.REPLACED})
CONTROLS = frozenset({Status.SPIKE_IN, Status.VIRAL})
LOST = frozenset(STATUSES) - KEPT - CONTROLS
CODE: dict[Status, int] = {status: i for i, status in enumerate(STATUSES)}
