"""The status of a schedule, kept up to date for whoever looks: in the atlas, in a folder, and on the loopback."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Template

from cellmill.ingestion.schedule.config import ScheduleConfig
from cellmill.ingestion.schedule.report import Status, TickReport
from cellmill.report import html_environment
from cellmill.storage import Storage

_SHOWN = 500
"""Sources on the page; the JSON has all."""


class Board:
    """Holds the status, and writes it out.

    Parameters
    ----------
    config
        The schedule's.
    storage
        The atlas's.
    now
        The time.
    """

    def __init__(self, config: ScheduleConfig, storage: Storage, now: datetime) -> None:
        self._config, self._storage = config, storage
        self._written: datetime | None = None
        empty = Status(schedule=config.name, atlas=storage.url, cron=config.cron, timezone=config.timezone, updated=now)
        # What other processes did is on the page as well.
        self.status = empty.model_copy(update={"history": self._history()})

    def update(self, now: datetime, *, write: bool = True, **changes: Any) -> None:
        """Change the status; while it changes often, only now and then is it written out.

        Parameters
        ----------
        now
            The time.
        write
            Whether it has to be written out at once.
        changes
            Of the status's fields.
        """
        self.status = self.status.model_copy(update={**changes, "updated": now})
        pause = None if self._written is None else (now - self._written).total_seconds()
        if not write and pause is not None and pause < self._config.status.refresh_s:
            return
        self._written = now
        pages = {"status.json": self.json(), "status.html": self.html()}
        for name, content in pages.items():
            self._storage.put(f"schedule/{self._config.name}/{name}", content)
        if (folder := self._config.status.directory) is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in pages.items():
                (folder / f".{name}").write_bytes(content)
                (folder / f".{name}").replace(folder / name)

    def remember(self, report: TickReport, now: datetime) -> None:
        """Add a tick to the history, and write nothing: what is in the atlas is up to whoever holds the lock."""
        self.status = self.status.with_tick(report).model_copy(update={"updated": now})

    def remember_next(self, due: datetime, now: datetime) -> None:
        """Say when the next tick is due, and write nothing."""
        self.status = self.status.model_copy(update={"state": "waiting", "next": due, "updated": now})

    def json(self) -> bytes:
        """Return the status for machines."""
        return self.status.model_dump_json(indent=1).encode()

    def html(self) -> bytes:
        """Return the status for people: a page that loads itself again."""
        status, zone = self.status, self._config.zone
        page = _template().render(
            status=status,
            shown=status.sources[:_SHOWN],
            refresh_s=self._config.status.refresh_s,
            local=lambda moment: f"{moment.astimezone(zone):%Y-%m-%d %H:%M:%S %Z}" if moment else "",
        )
        return page.encode()

    def _history(self) -> tuple[Any, ...]:
        key = f"schedule/{self._config.name}/status.json"
        if not self._storage.exists(key):
            return ()
        try:
            return Status.model_validate_json(self._storage.get(key)).history
        except ValueError:
            return ()  # written by another version, or cut: the state says what is in the atlas, not this page


@cache
def _template() -> Template:
    text = files("cellmill.ingestion.schedule").joinpath("status.html.j2").read_text()
    return html_environment().from_string(text)
