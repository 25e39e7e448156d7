"""One function from bytes of a known kind to cells."""

from __future__ import annotations

from cellmill.serving.bodies.arrow import read_arrow
from cellmill.serving.bodies.h5ad import read_h5ad
from cellmill.serving.bodies.json_body import read_json
from cellmill.serving.bodies.kinds import Kind
from cellmill.serving.cells import Cells
from cellmill.serving.config import LimitsConfig

_READERS = {"h5ad": read_h5ad, "json": read_json, "arrow": read_arrow}


def read_body(kind: Kind, body: bytes, limits: LimitsConfig) -> Cells:
    """Return the cells in a body.

    Raises
    ------
    RequestError, SourceError, CountsError
        The body is not of its kind, is above a limit, does not fit together, or holds no raw counts.
    """
    return _READERS[kind](body, limits)
