"""Processes as others see them who share a storage: which one, on which machine, and whether it still lives."""

from __future__ import annotations

import os
import socket

from cellmill.config import Config


class Process(Config):
    """A process on some machine.

    Attributes
    ----------
    machine, pid, born
        Kernel and name space of processes, process, and when it started in ticks of that kernel; `born` is None where
        that could not be seen.
    """

    machine: str
    pid: int
    born: int | None

    @classmethod
    def this(cls) -> Process:
        """Return the process that runs."""
        pid = os.getpid()
        return cls(machine=_machine(), pid=pid, born=_born(pid))

    def has_died(self) -> bool:
        """Return whether it is known to be dead; of another machine's process that is never known."""
        if not self.machine or self.machine != _machine():
            return False
        return self.born is not None and _born(self.pid) not in (None, self.born)


def owner() -> str:
    """Return the machine and the process that runs, for people."""
    return f"{socket.gethostname()}, process {os.getpid()}"


def _machine() -> str:
    """Return the running kernel and this process's name space of processes; empty where they are not known."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> int | None:
    """Return when a process started, in ticks of the kernel; 0 if it does not live, None if that is not known."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, *fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except OSError:
        return None
    return 0 if state in ("Z", "X") else int(fields[18])
