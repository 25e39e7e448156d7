"""Adding up what the chunks of a source report."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np

from cellmill.ingestion.backend import Row
from cellmill.ingestion.dataset_report import DatasetReport
from cellmill.ingestion.plan import SourcePlan


class Tally:
    """The sums over a source's chunks.

    Attributes
    ----------
    shard_cells : int64 [n_shards]
        Cells that each shard will have.

    Parameters
    ----------
    plan
        The source.
    """

    def __init__(self, plan: SourcePlan) -> None:
        self._plan = plan
        self.shard_cells = np.zeros(plan.n_shards, np.int64)
        self._umis = np.zeros(len(plan.mapping.names))
        self._cells_in = sum(plan.left_out.values())
        self._dropped = Counter(plan.left_out)

    def add(self, row: Row) -> None:
        """Add a chunk's result."""
        self._umis += np.asarray(row["umis"])
        self.shard_cells += np.asarray(row["shard_cells"])
        self._cells_in += int(row["cells_in"])
        self._dropped.update(json.loads(row["dropped"]))

    def report(self) -> DatasetReport:
        """Return the data set's report."""
        plan = self._plan
        genes, *others = plan.mapping.reports(self._umis)
        return DatasetReport(
            dataset=plan.dataset,
            url=plan.url,
            source_digest=plan.source_digest,
            licence=plan.config.licence,
            organism=plan.organism,
            counts=plan.place,
            genes=genes,
            others=tuple(others),
            unpaired=plan.unpaired,
            unread=plan.unread,
            cells_in=self._cells_in,
            cells_out=int(self.shard_cells.sum()),
            dropped=dict(self._dropped),
            shards=int(np.count_nonzero(self.shard_cells)),
        )
