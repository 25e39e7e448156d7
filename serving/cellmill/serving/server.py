"""Starting the endpoint, waiting for it to be stopped, and stopping it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cellmill.cluster import connect, disconnect
from cellmill.serving.config import ServeConfig
from cellmill.serving.startup import start, stop, verify_models


def serve(config: ServeConfig, *, blocking: bool = True) -> str:
    """Serve the models of a configuration.

    Parameters
    ----------
    config
        The endpoint.
    blocking
        Return only when the process is told to stop (Ctrl-C, SIGTERM), after shutting down. Otherwise return as soon
        as requests are taken; `cellmill.serving.startup.stop` ends it.

    Returns
    -------
    str
        Address of the endpoint.

    Raises
    ------
    ModelError, IntegrityError
        A model folder is missing, incomplete or damaged, or a model does not start.
    ConfigError
        The port is taken, or this cluster's Ray Serve listens elsewhere or serves an endpoint already.
    ResourceError
        The cluster has too little for the replicas.
    """
    if blocking:
        with running(config):
            wait_for_stop()
    else:
        verify_models(config)
        connect(config.cluster)
        start(config)
    return config.url


@contextmanager
def running(config: ServeConfig) -> Iterator[str]:
    """Serve as long as the context lasts; yields the address."""
    verify_models(config)
    ours = connect(config.cluster) == "started"
    try:
        start(config)
        try:
            yield config.url
        finally:
            stop()
    finally:
        if ours:
            disconnect()


def wait_for_stop() -> None:
    """Return when the process is told to stop: Ctrl-C or SIGTERM."""
    told = threading.Event()

    def tell(number: int, frame: FrameType | None) -> None:
        told.set()

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        told.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
