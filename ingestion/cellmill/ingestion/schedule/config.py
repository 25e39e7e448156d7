"""What is re-ingested, when, and what happens around it."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Literal, Self
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator, model_validator

from cellmill.config import Config
from cellmill.ingestion.config import IngestConfig
from cellmill.ingestion.schedule.cron import check_expression

PLACEHOLDERS = ("atlas", "snapshot", "datasets", "schedule")
"""What a hook's command may name in braces, and find in its environment as ``CELLMILL_ATLAS`` and so on."""

_BRACES = re.compile(r"\{([a-z_]+)\}")


class VanishedConfig(Config):
    """What happens to sources that were ingested and are there no more.

    Attributes
    ----------
    policy
        ``keep`` leaves their cells in the atlas, ``remove`` takes them out of the next snapshot.
    most
        Share of all ingested sources that may be removed at once; if more have vanished a disk is likely to be missing,
        and nothing is removed.
    """

    policy: Literal["keep", "remove"] = "keep"
    most: float = Field(default=0.5, gt=0, le=1)


class RetryConfig(Config):
    """When something that failed is tried again.

    Attributes
    ----------
    attempts
        Retries that do not wait for the next tick; after these, only ticks retry.
    first_s, longest_s
        Pause after the first failure in seconds, doubled with each one more, up to the longest.
    jitter
        Share by which a pause is shortened or lengthened at random.
    """

    attempts: int = Field(default=3, ge=0)
    first_s: float = Field(default=60, gt=0)
    longest_s: float = Field(default=86_400, gt=0)
    jitter: float = Field(default=0.2, ge=0, lt=1)

    def pause(self, failures: int, rng: random.Random) -> float:
        """Return the seconds to wait after so many failures in a row."""
        seconds = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 60))
        return seconds * rng.uniform(1 - self.jitter, 1 + self.jitter)


class StatusConfig(Config):
    """Where to look at what the schedule does.

    Attributes
    ----------
    port
        Port of the status page on the loopback (``http://127.0.0.1:PORT``); None serves none.
    directory
        A folder that gets ``status.json`` and ``status.html`` beside those in the atlas.
    refresh_s
        Seconds after which the page loads itself again.
    """

    port: int | None = Field(default=8180, ge=1, le=65_535)
    directory: Path | None = None
    refresh_s: int = Field(default=10, ge=1)


class HookConfig(Config):
    """A command that is run after a tick that changed the atlas, and again by later ticks if it failed.

    It holds the lock while it runs, so that what takes long is better submitted than waited for. If the schedule is
    killed, a hook that goes on is reported as still running, and run once more when it has ended. To go on with
    pretraining on each new snapshot: ``[cellmill, pretrain, pretrain.yaml, --set, "snapshot={snapshot}", --set,
    "output=runs/{snapshot}", --set, "init=models/current"]``.

    Attributes
    ----------
    command
        Program and arguments, without a shell. ``{atlas}``, ``{snapshot}``, ``{datasets}`` (separated by commas) and
        ``{schedule}`` are filled in; the environment has them as ``CELLMILL_ATLAS`` and so on.
    timeout_s
        Seconds after which it is ended.
    """

    command: tuple[str, ...] = Field(min_length=1)
    timeout_s: float = Field(default=86_400, gt=0)

    @field_validator("command")
    @classmethod
    def _known(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        for name in (name for part in command for name in _BRACES.findall(part)):
            if name not in PLACEHOLDERS:
                raise ValueError(f"{{{name}}} is not known; there are: {', '.join(PLACEHOLDERS)}")
        return command


class ScheduleConfig(Config):
    """A whole schedule.

    Attributes
    ----------
    name
        Its name: the lock and the state in the atlas carry it.
    ingest
        The atlas, the sources and how they are ingested, as for ``cellmill ingest``. A source's path may also be a
        version of the CELLxGENE Census: ``census:2025-11-08``, or ``census:latest-lts``, which follows the releases.
    cron
        When: minute, hour, day of the month, month, day of the week (0 and 7 are Sunday); or ``@daily`` and the like.
    timezone
        In which the expression is read.
    vanished
        What happens to sources that are there no more.
    settle_s
        Seconds after which a source that is new or has changed is looked at once more; if it has changed again somebody
        is still writing it, and it is left to a later tick.
    withdrawn
        What happens to a source that was ingested but is not in the newest snapshot, since somebody rolled the atlas
        back or removed it: ``report`` leaves it out until it changes, ``land`` ingests it again.
    retries
        When something that failed is tried again.
    lock_s
        Seconds after which the lock of a process that no longer answers may be taken.
    status
        Where to look.
    hook
        What is run after a tick that changed the atlas.
    census_directory
        The directory of Census releases, a URL or a file.
    output
        Directory of logs, reports and hooks' output; by default ``schedule/NAME`` in a local atlas, or
        ``schedule-NAME`` in the working directory for a remote one.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    ingest: IngestConfig
    cron: str
    timezone: str = "UTC"
    vanished: VanishedConfig = VanishedConfig()
    settle_s: float = Field(default=10, ge=0)
    withdrawn: Literal["report", "land"] = "report"
    retries: RetryConfig = RetryConfig()
    lock_s: float = Field(default=120, ge=10)
    status: StatusConfig = StatusConfig()
    hook: HookConfig | None = None
    census_directory: str = "https://census.cellxgene.cziscience.com/cellxgene-census/v1/release.json"
    output: Path | None = None

    @property
    def zone(self) -> ZoneInfo:
        """The time zone."""
        return ZoneInfo(self.timezone)

    @field_validator("cron")
    @classmethod
    def _expression(cls, cron: str) -> str:
        check_expression(cron)
        return cron

    @field_validator("timezone")
    @classmethod
    def _zone(cls, timezone: str) -> str:
        try:
            ZoneInfo(timezone)
        except (LookupError, ValueError, OSError) as error:
            raise ValueError(f"{timezone!r} is no time zone; give one such as Europe/Berlin") from error
        return timezone

    @model_validator(mode="after")
    def _no_output_twice(self) -> Self:
        if self.ingest.output is not None:
            raise ValueError("`ingest.output` would be one directory for many runs; set `output` of the schedule")
        return self
