"""Child processes that begin warm and alone: forked from a server that has imported much and runs nothing."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

_PRELOADED = ["tests.warm", "torch", "deepspeed", "cellmill.training.engine", "cellmill.training.loop"]


def forkserver() -> ForkServerContext:
    """Return the context. A plain fork would take over locks of stores whose threads do not survive it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context
