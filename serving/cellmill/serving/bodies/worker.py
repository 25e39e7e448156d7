"""The process that reads strangers' bodies: bounded memory, no files, nothing of value inside.

It speaks over its standard streams: in, a head (kind, length) and the body; out, a status, a length and either the
cells (`Cells.to_bytes`) or an error as JSON. A body that ends this process ends nothing else.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import struct
import sys
from typing import BinaryIO

from cellmill.config import parse_config
from cellmill.errors import CellmillError
from cellmill.serving.bodies.kinds import Kind
from cellmill.serving.bodies.read import read_body
from cellmill.serving.config import MB, LimitsConfig
from cellmill.serving.errors import TooLargeError

HEAD = struct.Struct("<cQ")
KINDS: dict[bytes, Kind] = {b"h": "h5ad", b"j": "json", b"a": "arrow"}
CELLS, ERROR, READY = b"c", b"e", b"r"


def main() -> None:
    """Answer bodies until standard input ends."""
    limits = parse_config(LimitsConfig, json.loads(sys.argv[1]), where="limits")
    source = sys.stdin.buffer
    # Whatever a library prints must not get between the answers.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _confine(limits.parser_memory_mb)
    _answer(sink, READY, b"")
    while head := source.read(HEAD.size):
        kind, length = HEAD.unpack(head)
        try:
            payload = read_body(KINDS[kind], source.read(length), limits).to_bytes()
            status = CELLS
        except CellmillError as error:
            status, payload = ERROR, json.dumps(error.as_dict()).encode()
        except MemoryError:
            status, payload = ERROR, json.dumps(_memory_error(limits).as_dict()).encode()
        _answer(sink, status, payload)
        del payload
        gc.collect()


def _memory_error(limits: LimitsConfig) -> TooLargeError:
    """Return the error of a body that unpacks to more memory than the parser has."""
    return TooLargeError(
        f"The body needs more than {limits.parser_memory_mb:,} MB of memory to read.",
        where="body",
        fix="Send fewer cells in a request.",
    )


def _confine(memory_mb: int) -> None:
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = used + memory_mb * MB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _answer(sink: BinaryIO, status: bytes, payload: bytes) -> None:
    sink.write(HEAD.pack(status, len(payload)))
    sink.write(payload)
    sink.flush()


if __name__ == "__main__":
    main()
