"""Planning all sources of a configuration, each as a task of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cellmill.atlas.withdrawals import Withdrawal, active_withdrawals
from cellmill.console import progress
from cellmill.ingestion.backend import Backend
from cellmill.ingestion.config import IngestConfig, SourceConfig
from cellmill.ingestion.naming import dataset_name, tell_namesakes
from cellmill.ingestion.plan import SourcePlan, plan_source
from cellmill.ingestion.sources import Place, registry
from cellmill.ingestion.sources.finding import find_places
from cellmill.ingestion.sources.holding import bounded
from cellmill.ingestion.sources.joined import open_joined
from cellmill.storage import Storage


@dataclass(frozen=True)
class PlanSource:
    """Task number i plans the i-th source: it fetches, digests and opens its files where it runs.

    Parameters
    ----------
    config
        The ingestion.
    sources
        Location, name of the data set and configuration of each source.
    withdrawals
        Cells that must not come back.
    """

    config: IngestConfig
    sources: Sequence[tuple[str, str, SourceConfig]]
    withdrawals: Sequence[Withdrawal]

    def __call__(self, number: int) -> SourcePlan:
        """Run one task."""
        location, name, own = self.sources[number]
        place = Place(location)
        with bounded(self.config.task_memory_mb):
            found = registry.resolve(place, own)
            source = open_joined(found.name, place, name, own)
            try:
                return plan_source(source, place.location, found.name, own, self.config, self.withdrawals)
            finally:
                source.close()


def plan_all(config: IngestConfig, backend: Backend) -> list[SourcePlan]:
    """Return the plans of all sources, in the order of the configuration; nothing is written to the atlas.

    Raises
    ------
    CellmillError
        The first that a source raised; see `plan_source`.
    """
    sources = list(expand(config))
    tell_namesakes((place, name) for place, name, own in sources if own.dataset is None)
    regions = config.peaks.model_copy(update={"regions": _absolute(config.peaks.regions)})
    task = PlanSource(
        config.model_copy(update={"peaks": regions}),
        [(place.location, name, own) for place, name, own in sources],
        active_withdrawals(Storage.open(config.atlas)),
    )
    plans: dict[int, SourcePlan] = {}
    with progress(len(sources), "planning", unit="sources") as advance:
        for number, plan in backend.gather(task, [place.url for place, _, _ in sources]):
            plans[number] = plan
            advance(1)
    return [plans[number] for number in range(len(sources))]


def expand(config: IngestConfig) -> Iterator[tuple[Place, str, SourceConfig]]:
    """Yield each file or folder of a configuration, with the name of its data set.

    Raises
    ------
    SourceError
        A pattern finds nothing.
    """
    for source in config.sources:
        own = _anchored(source)
        for place in find_places(source.path):
            yield place, source.dataset or dataset_name(source.path, place), own


def _anchored(source: SourceConfig) -> SourceConfig:
    """Return a configuration whose further files are named absolutely: tasks may run in another working directory."""
    joins = tuple(
        join.model_copy(update={"path": _absolute(join.path), "features": _absolute(join.features)})
        for join in source.join
    )
    return source.model_copy(update={"features": _absolute(source.features), "join": joins})


def _absolute(path: str | None) -> str | None:
    return None if path is None else Place(path).location
