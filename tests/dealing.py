"""How tests are dealt to processes: file by file, and all that start Ray to one process, at the beginning."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

_STARTS_RAY = re.compile(r"\bray_cluster\b|\bmark\.ray\b")
_ROOT = Path(__file__).resolve().parents[1]


class Dealing(LoadScopeScheduling):  # type: ignore[misc]
    """Clusters of one machine take each other's cores and wait for each other, so there is one at a time."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "ray" if starts_ray(file) else file


@functools.cache
def starts_ray(file: str) -> bool:
    """Return whether tests of a file, given relative to the repository, start Ray."""
    return _STARTS_RAY.search((_ROOT / file).read_text()) is not None
