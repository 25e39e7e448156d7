"""Handing bodies to a process of its own, and surviving whatever they do to it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from typing import IO

from cellmill.errors import RequestError, ResourceError
from cellmill.serving.bodies.kinds import Kind
from cellmill.serving.bodies.worker import CELLS, HEAD, KINDS
from cellmill.serving.cells import Cells
from cellmill.serving.config import LimitsConfig
from cellmill.serving.errors import SlowBodyError, revive

_START_SECONDS = 120.0
_CODES = {kind: code for code, kind in KINDS.items()}
_ENVIRONMENT = {
    "HDF5_PLUGIN_PRELOAD": "::",  # no filter plug-in is loaded because a file names it
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


class BodyParser:
    """Reads bodies one after the other in a child process, which is started again when a body ends it.

    Parameters
    ----------
    limits
        What a body may hold, and what memory and time reading it may take.
    """

    def __init__(self, limits: LimitsConfig) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the child process now, so that the first body does not wait for it.

        Raises
        ------
        ResourceError
            It does not start.
        """
        with self._lock:
            self._running()

    async def read(self, kind: Kind, body: bytes | bytearray) -> Cells:
        """Return the cells in a body.

        Raises
        ------
        RequestError
            As in `read_body`; also where the body used up memory or time, or broke its reader.
        """
        return await asyncio.to_thread(self.read_now, kind, body)

    def read_now(self, kind: Kind, body: bytes | bytearray) -> Cells:
        """Do what `read` does, in the calling thread."""
        with self._lock:
            process = self._running()
            late = threading.Event()
            timer = threading.Timer(self.limits.parser_seconds, _end, (process, late))
            timer.start()
            try:
                status, payload = self._ask(process, _CODES[kind], body)
            except (OSError, EOFError) as error:
                self._stop()
                if late.is_set():
                    raise SlowBodyError(
                        f"Reading the body took longer than {self.limits.parser_seconds:g} s.",
                        where="body",
                        fix="Send fewer cells in a request.",
                    ) from error
                raise RequestError("The body broke its reader.", where="body", fix="Write the file anew.") from error
            finally:
                timer.cancel()
        if status == CELLS:
            return Cells.from_bytes(payload)
        detail = json.loads(payload)
        if detail["kind"] == "too_large":
            self.close()  # gives the memory back
        raise revive(detail)

    def close(self) -> None:
        """End the child process."""
        with self._lock:
            self._stop()

    def _ask(self, process: subprocess.Popen[bytes], code: bytes, body: bytes | bytearray) -> tuple[bytes, bytes]:
        stdin, stdout = _pipes(process)
        stdin.write(HEAD.pack(code, len(body)))
        stdin.write(body)
        stdin.flush()
        return _receive(stdout)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        paths = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cellmill.serving.bodies.worker", self.limits.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | _ENVIRONMENT | {"PYTHONPATH": paths},
        )
        timer = threading.Timer(_START_SECONDS, self._process.kill)
        timer.start()
        try:
            _receive(_pipes(self._process)[1])
        except EOFError as error:
            self._stop()
            raise ResourceError("The process that reads request bodies does not start.", where="gateway") from error
        finally:
            timer.cancel()
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # what was buffered for it is of no use any more


def _end(process: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    process.kill()


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    if process.stdin is None or process.stdout is None:
        raise EOFError
    return process.stdin, process.stdout


def _receive(stdout: IO[bytes]) -> tuple[bytes, bytes]:
    head = stdout.read(HEAD.size)
    if len(head) < HEAD.size:
        raise EOFError
    status, length = HEAD.unpack(head)
    payload = stdout.read(length)
    if len(payload) < length:
        raise EOFError
    return status, payload
