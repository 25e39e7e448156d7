"""Compiled code that processes share."""

from __future__ import annotations

import functools
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba.core.caching import IndexDataCacheFile

from cellmill.atlas.jit import SharedCache
from tests.children import forkserver

KINDS = ("int64", "float64")
KERNEL = """
from cellmill.atlas.jit import compiled

@compiled
def total(values):
    found = values[0]
    for value in values[1:]:
        found += value
    return found
"""


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("kernel", path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["kernel"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.total


def compile_for(path: Path, kind: str, results: Any, saving: Any) -> None:
    """Compile for a type.

    The second looks at the index before the first has written it, and writes its own and its code before the code of
    the first is there.
    """
    file: Any = IndexDataCacheFile
    cache: Any = SharedCache
    if kind == KINDS[0]:
        file.save = after(saving.set, file.save)
        file._save_index, file._save_data = after(pause(0.2), file._save_index), after(pause(0.4), file._save_data)
    else:
        cache.save_overload = after(saving.wait, cache.save_overload)
        file._save_index = after(pause(0.3), file._save_index)
    results.put(float(load(path)(np.array([1, 2, 3], kind))))


def after(first: Callable[[], object], function: Callable[..., Any]) -> Callable[..., Any]:
    def both(*arguments: Any) -> Any:
        first()
        return function(*arguments)

    return both


def pause(seconds: float) -> Callable[[], object]:
    return functools.partial(time.sleep, seconds)


def test_processes_that_compile_at_once_do_not_take_each_others_code(tmp_path: Path) -> None:
    path = tmp_path / "kernel.py"
    path.write_text(KERNEL)
    context = forkserver()
    results, saving = context.Queue(), context.Event()
    children = [context.Process(target=compile_for, args=(path, kind, results, saving), daemon=True) for kind in KINDS]
    for child in children:
        child.start()
    assert [results.get(timeout=120) for _ in children] == [6.0, 6.0]
    for child in children:
        child.join()
    total = load(path)
    assert isinstance(total._cache, SharedCache)
    for kind in KINDS:
        assert total(np.array([1, 2, 3], kind)) == 6
    assert sum(total.stats.cache_hits.values()) == 2
    assert not total.stats.cache_misses
