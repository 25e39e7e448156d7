"""Progress of a run, read from what its first worker writes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cellmill.console import progress

_INTERVAL_S = 0.5


@contextmanager
def watching(run: Path, *, total_steps: int, done: int, description: str) -> Iterator[None]:
    """Show the steps of a run while the block runs, wherever the workers are.

    Parameters
    ----------
    run
        The run's directory, where ``metrics.jsonl`` grows.
    total_steps, done
        Length of the run, and steps taken before.
    description
        What is going on.
    """
    stop = threading.Event()
    if done:
        description += f" (resumed at step {done:,})"
    with progress(total_steps - done, description, unit="steps") as advance:
        thread = threading.Thread(target=_follow, args=(run / "metrics.jsonl", done, advance, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _follow(path: Path, done: int, advance: Callable[[int], None], stop: threading.Event) -> None:
    offset = path.stat().st_size if path.exists() else 0
    while True:
        ended = stop.wait(_INTERVAL_S)
        if path.exists():
            with path.open() as file:
                file.seek(offset)
                text = file.read()
            complete = text[: text.rfind("\n") + 1]
            offset += len(complete.encode())
            for line in complete.splitlines():
                step = int(json.loads(line)["step"])
                if step > done:
                    advance(step - done)
                    done = step
        if ended:
            return
