"""A command after a tick that changed the atlas, for instance one that goes on with pretraining."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from cellmill.config import Config
from cellmill.ingestion.schedule.config import HookConfig

HELD = "hook.lock"
"""A file that a hook holds locked, in the directory of a schedule's output."""

_GRACE_S = 10.0
_TAIL = 2000


class HookResult(Config):
    """What a hook did.

    Attributes
    ----------
    command
        As it was run.
    ok
        Whether it ended with 0.
    outcome
        How it ended, for people.
    log
        The file with all that it printed, or prints while it is still running.
    tail
        The end of it.
    """

    command: tuple[str, ...]
    ok: bool
    outcome: str
    log: str
    tail: str


def run_hook(config: HookConfig, facts: Mapping[str, str], log: Path, held: Path) -> HookResult:
    """Run a hook to its end, and say how it ended; one that outlived its scheduler is let be, and none run beside it.

    Parameters
    ----------
    config
        What to run.
    facts
        Value of each placeholder.
    log
        Where its output goes.
    held
        The file that it holds locked. It is the command that holds it, and all that it starts, so that the lock
        outlives a scheduler that is killed, and is gone with the last of them.
    """
    command = tuple(_filled(part, facts) for part in config.command)
    held.parent.mkdir(parents=True, exist_ok=True)
    with held.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            outcome = "is still running since an earlier tick, whose process was killed"
            return HookResult(command=command, ok=False, outcome=outcome, log=held.read_text(), tail="")
        except OSError as error:
            outcome = f"cannot be run: {held} cannot be locked: {error}"
            return HookResult(command=command, ok=False, outcome=outcome, log="", tail="")
        lock.truncate(0)
        lock.write(str(log))
        lock.flush()
        try:
            return _run(config, command, facts, log, lock.fileno())
        finally:
            # What a command has left running on purpose has the file open as well, and keeps no later hook waiting.
            fcntl.flock(lock, fcntl.LOCK_UN)


def _run(config: HookConfig, command: tuple[str, ...], facts: Mapping[str, str], log: Path, lock: int) -> HookResult:
    environment = os.environ | {f"CELLMILL_{name.upper()}": value for name, value in facts.items()}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        try:
            # A group of its own, so that a time-out ends whatever the command has started as well.
            child = subprocess.Popen(
                command,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(lock,),
            )
        except OSError as error:
            return HookResult(command=command, ok=False, outcome=f"cannot be run: {error}", log=str(log), tail="")
        try:
            code = child.wait(config.timeout_s)
            outcome = "ended well" if code == 0 else f"ended with code {code}"
        except subprocess.TimeoutExpired:
            code, outcome = -1, f"was stopped after {config.timeout_s:,.0f} s"
        finally:
            _end(child)
    tail = log.read_bytes()[-_TAIL:].decode(errors="replace")
    return HookResult(command=command, ok=code == 0, outcome=outcome, log=str(log), tail=tail)


def _filled(part: str, facts: Mapping[str, str]) -> str:
    for name, value in facts.items():
        part = part.replace(f"{{{name}}}", value)
    return part


def _end(child: subprocess.Popen[bytes]) -> None:
    """End what still runs of a command, politely first."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        if child.poll() is not None:
            return
        os.killpg(child.pid, kind)
        try:
            child.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            continue
