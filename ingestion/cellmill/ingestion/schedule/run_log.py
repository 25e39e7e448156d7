"""What happened, line by line: JSON in files of a month each, words on the terminal."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from rich.text import Text

from cellmill.console import console


class RunLog:
    """Appends events to ``DIRECTORY/log-YYYY-MM.jsonl``.

    Parameters
    ----------
    directory
        Made when the first event is written.
    zone
        Of the times on the terminal; those in the files are UTC.
    """

    def __init__(self, directory: Path, zone: ZoneInfo) -> None:
        self.directory, self._zone = directory, zone

    def write(self, now: datetime, event: str, text: str, **facts: Any) -> None:
        """Append an event.

        Parameters
        ----------
        now
            The time.
        event
            What kind it is of.
        text
            For people.
        facts
            More for machines.
        """
        line = {"time": now.isoformat(timespec="seconds"), "event": event, "text": text, **facts}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with (self.directory / f"log-{now:%Y-%m}.jsonl").open("a") as file:
                file.write(json.dumps(line, default=str) + "\n")
        except OSError as error:
            # A full disk must not end a schedule; it is told where there is still room for it.
            console.print(Text.assemble(("The log cannot be written:", "bold red"), f" {error}"), soft_wrap=True)
        stamp = f"{now.astimezone(self._zone):%Y-%m-%d %H:%M:%S}"
        console.print(Text.assemble((stamp, "dim"), f" {text}"), soft_wrap=True)
