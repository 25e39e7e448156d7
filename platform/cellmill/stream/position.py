"""Where a run stands in its stream, exact to the cell and independent of the number of workers."""

from __future__ import annotations

from cellmill.config import Config


class Position(Config):
    """Where a run stands; written into checkpoints.

    Attributes
    ----------
    epoch
        The epoch it is in.
    taken
        Cells, or sets of cells, that each lane has given in this epoch (a lane that is shorter has given all it has).
    lanes
        Number of lanes.
    order
        Digest of what decides the order: the selected cells, seed, lanes, window, run and sampling.
    """

    epoch: int
    taken: int
    lanes: int
    order: str
