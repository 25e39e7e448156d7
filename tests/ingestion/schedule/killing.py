"""A warm process whose children run one tick each, and may kill themselves at a named point of it.

It takes one JSON object a line: the configuration, the point, at which passing of the point, and how many children run
at once. It answers with how each ended: the negative signal that killed it, 0 if all went well, 1 if not, 2 if the tick
was skipped. It never touches a store itself: their threads do not survive a fork.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn
from unittest import mock

from cellmill.atlas.atlas import Atlas
from cellmill.config import parse_config
from cellmill.ingestion import commit, pipeline
from cellmill.ingestion.schedule import loop, tick
from cellmill.ingestion.schedule.config import ScheduleConfig
from cellmill.ingestion.schedule.loop import Scheduler
from cellmill.ingestion.schedule.setting import Setting
from cellmill.ingestion.schedule.state import StateStore
from cellmill.storage import Storage
from tests import warm  # noqa: F401 - loads what its children need
from tests.ingestion.schedule.clockwork import FakeClock

POINTS: dict[str, tuple[Any, str, bool]] = {
    "after the lock": (loop, "acquire", False),
    "after looking": (Setting, "look", False),
    "before a state is written": (StateStore, "save", True),
    "after a state is written": (StateStore, "save", False),
    "shards written, before the commit": (commit, "find_duplicates", True),
    "before a commit": (Atlas, "update", True),
    "after a commit": (Atlas, "update", False),
    "after a source": (tick, "land", False),
    "before the hook": (tick, "run_hook", True),
    "after the hook": (tick, "run_hook", False),
    "at any write": (Storage, "put", True),
}
"""Owner and name of a function, and whether the point is before it or after."""


def arm(point: str, passing: int) -> None:
    """Kill this process when a point is passed for the given time."""
    owner, name, is_before = POINTS[point]
    original: Callable[..., Any] = getattr(owner, name)
    left = [passing]

    def deadly(*arguments: Any, **more: Any) -> Any:
        left[0] -= 1
        if is_before and left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        found = original(*arguments, **more)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(owner, name, deadly)


def main() -> None:
    # Plots of runs are not what is tested here, and most of the time would go into them.
    mock.patch.object(pipeline, "write_run", lambda config, *_: config.output).start()
    for line in sys.stdin:
        order = json.loads(line)
        config = parse_config(ScheduleConfig, order["config"], where="test")
        children = [child for _ in range(order["rivals"]) if (child := os.fork()) or run_tick(config, order)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), flush=True)


def run_tick(config: ScheduleConfig, order: dict[str, Any]) -> NoReturn:
    """Run one tick in a child, and end it."""
    if order["point"]:
        arm(order["point"], order["passing"])
    report = Scheduler(config, FakeClock(), random.Random(0)).once()
    os._exit(2 if report.outcome == "skipped" else 0 if report.is_well else 1)


if __name__ == "__main__":
    main()
