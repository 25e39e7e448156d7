"""An ingestion on a Ray cluster of its own that is killed, as a whole, at a point of the driver or of a task."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cellmill.ingestion import IngestConfig, ingest, job
from cellmill.ingestion.backend import Row
from tests.faults.points import Point, Points


@dataclass(frozen=True)
class Deadly:
    """A task in whose process a point kills it and the driver."""

    function: Callable[[int], Row]
    fatal: Point
    driver: int

    def __call__(self, number: int) -> Row:
        """Run the task."""
        Points(self.fatal, victims=(self.driver,)).install()
        return self.function(number)


def main() -> None:
    """Ingest ``source atlas [driver|task name phase number]``."""
    source, atlas, *rest = sys.argv[1:]
    if rest:
        where, name, phase, number = rest
        fatal = (name, phase, int(number))
        if where == "driver":
            Points(fatal).install()
        else:
            real: Any = job.RayBackend.map

            def deadly(self: Any, function: Callable[[int], Row], n: int) -> Iterator[Row]:
                found: Iterator[Row] = real(self, Deadly(function, fatal, os.getpid()), n)
                return found

            job.RayBackend.map = deadly  # type: ignore[method-assign]
    settings = {"shard_cells": 40, "backend": "ray", "cluster": {"address": "local", "cpus": 2, "object_store_mb": 128}}
    sources = [{"path": source, "dataset": "cells", "organism": "human"}]
    ingest(IngestConfig.model_validate({"atlas": atlas, "sources": sources, **settings}))


if __name__ == "__main__":
    main()
