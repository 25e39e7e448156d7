"""Run a function as several ranks of a gloo group, each in a process of its own."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.children import forkserver


def run_ranks(function: Callable[..., None], world_size: int, *args: Any) -> None:
    """Call `function(rank, *args)` on every rank; an error on one is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing: Any = torch.multiprocessing
        method = forkserver().get_start_method()
        arguments = (world_size, f"{folder}/store", function, args)
        multiprocessing.start_processes(_enter, arguments, nprocs=world_size, start_method=method)


def _enter(rank: int, world_size: int, store: str, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    distributed: Any = torch.distributed
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(store, world_size), rank=rank, world_size=world_size
    )
    function(rank, *args)
    distributed.barrier()
    distributed.destroy_process_group()


def folder_of(path: Path, *parts: object) -> Path:
    """Return a folder named by what it is for."""
    return path / "-".join(map(str, parts))
