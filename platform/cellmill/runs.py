"""A run's directory: resolved configuration, metrics, plots and lineage."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellmill.config import Config
from cellmill.errors import ConfigError, SourceError
from cellmill.lineage import Lineage, read_lineage

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter


class Run:
    """One run and its directory.

    The directory holds ``run.json`` (kind and start), ``config.yaml`` (resolved), ``metrics.jsonl`` and
    ``tensorboard/``, ``plots/``, ``summary.json`` and ``lineage.json``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: SummaryWriter | None = None

    @classmethod
    def create(cls, directory: Path | str, kind: str, config: Config, *, resume: bool = False) -> Run:
        """Make a run directory, or open it again to resume.

        Raises
        ------
        ConfigError
            The directory is not empty and `resume` is not asked for, or it holds a run of another kind.
        """
        path = Path(directory).absolute()
        marker = path / "run.json"
        if resume and marker.exists() and json.loads(marker.read_text()).get("kind") == kind:
            return cls(path)
        cls.require_free(path)
        (path / "plots").mkdir(parents=True, exist_ok=True)
        config.save(path / "config.yaml")
        marker.write_text(json.dumps({"kind": kind, "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}))
        return cls(path)

    @staticmethod
    def require_free(directory: Path | str) -> None:
        """Refuse a directory that holds something; for what must be known before a long time is spent.

        Raises
        ------
        ConfigError
            It is not empty.
        """
        path = Path(directory).absolute()
        marker = path / "run.json"
        if marker.exists():
            raise ConfigError(
                f"The directory already holds a run ({json.loads(marker.read_text()).get('kind')}).",
                where=str(path),
                fix="Add --resume to go on with it, or choose another `output`.",
            )
        if path.is_dir() and any(path.iterdir()):
            raise ConfigError(
                "The output directory is not empty and is no run.",
                where=str(path),
                fix="Choose another `output`.",
            )

    @classmethod
    def open(cls, directory: Path | str) -> Run:
        """Open an existing run.

        Raises
        ------
        SourceError
            The directory holds no run.
        """
        path = Path(directory).absolute()
        if not (path / "run.json").exists():
            raise SourceError("There is no run here.", where=str(path), fix="Give the `output` directory of a run.")
        return cls(path)

    @property
    def kind(self) -> str:
        """What the run did: ingest, pretrain, finetune, ..."""
        kind: str = json.loads((self.path / "run.json").read_text())["kind"]
        return kind

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one line of metrics, and write them for TensorBoard."""
        line: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        line.update({key: value if math.isfinite(value) else str(value) for key, value in metrics.items()})
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        writer = self._tensorboard()
        for key, value in metrics.items():
            writer.add_scalar(key, value, step)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the metrics by step; where a resumed run wrote a step twice, the later line counts."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        lines = (json.loads(line) for line in path.read_text().splitlines() if line)
        by_step = {line["step"]: line for line in lines}
        return [by_step[step] for step in sorted(by_step)]

    def figure(self, name: str, figure: Figure) -> Path:
        """Save a figure as ``plots/NAME.png`` and close it."""
        import matplotlib.pyplot as plt

        path = self.path / "plots" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=110, bbox_inches="tight")
        plt.close(figure)
        return path

    def summary(self, values: Mapping[str, Any]) -> None:
        """Write ``summary.json``: what the run achieved."""
        (self.path / "summary.json").write_text(json.dumps(values, indent=1, default=str) + "\n")

    def read_summary(self) -> dict[str, Any]:
        """Return ``summary.json``, or an empty mapping before the run has ended."""
        path = self.path / "summary.json"
        data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return data

    def lineage(self, lineage: Lineage) -> None:
        """Write ``lineage.json``."""
        lineage.save(self.path / "lineage.json")

    def read_lineage(self) -> Lineage:
        """Return the run's lineage.

        Raises
        ------
        SourceError
            The run has not written one.
        """
        return read_lineage(self.path / "lineage.json")

    def close(self) -> None:
        """Flush what TensorBoard has buffered."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _tensorboard(self) -> SummaryWriter:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.path / "tensorboard"))
        return self._writer
