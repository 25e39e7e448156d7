"""The fast zarr codec pipeline, for stores on a local disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

_PATH = "zarrs.ZarrsCodecPipeline"


@contextmanager
def fast_codecs(local: bool) -> Iterator[None]:
    """Let zarr encode and decode in Rust within the block; object stores keep zarr's own pipeline.

    Arrays opened within the block keep the pipeline after it.
    """
    import zarr
    import zarrs  # noqa: F401 - registers the pipeline

    with zarr.config.set({"codec_pipeline.path": _PATH}) if local else nullcontext():
        yield
