"""Child processes that begin warm and alone: forked from a server that has imported much and started no thread."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext


def forkserver() -> ForkServerContext:
    """Return the context. A plain fork would take over locks of stores whose threads do not survive it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.warm"])
    return context
