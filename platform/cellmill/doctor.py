"""`cellmill doctor`: what is installed, what would run here, and what is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import psutil
import typer
from rich.table import Table
from rich.text import Text

from cellmill.config import Config
from cellmill.console import console, emit

Verdict = Literal["ok", "note", "missing"]

_PACKAGES = ("ray", "torch", "deepspeed", "anndata", "zarr", "deltalake", "numba", "pyarrow", "fastapi")
_OPTIONAL = {
    "flash_attn": "flash-attn: not needed; torch's built-in kernels are used without it",
    "scanpy": "scanpy: only for comparisons (pip install 'cellmill[eval]')",
}
_MINIMUM_FREE_GB = 5.0


class Check(Config):
    """One line of the doctor's report."""

    name: str
    verdict: Verdict
    text: str


def examine() -> list[Check]:
    """Return everything worth knowing about this machine, in the order in which a person would ask."""
    return [_python(), *_packages(), *_optional(), *_machine(), _device(), _attention(), _cluster(), _cache()]


def _python() -> Check:
    good = sys.version_info >= (3, 11)
    return Check(
        name="python", verdict="ok" if good else "missing", text=f"{platform.python_version()} (needs 3.11 or later)"
    )


def _packages() -> list[Check]:
    checks = []
    for name in _PACKAGES:
        try:
            checks.append(Check(name=name, verdict="ok", text=version(name)))
        except PackageNotFoundError:
            checks.append(Check(name=name, verdict="missing", text=f"pip install {name}"))
    return checks


def _optional() -> list[Check]:
    found = [name for name in _OPTIONAL if importlib.util.find_spec(name)]
    return [
        Check(name=name, verdict="ok" if name in found else "note", text="installed" if name in found else text)
        for name, text in _OPTIONAL.items()
    ]


def _machine() -> list[Check]:
    memory = psutil.virtual_memory()
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    return [
        Check(name="cpus", verdict="ok", text=f"{os.cpu_count()}"),
        Check(name="memory", verdict="ok", text=f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"),
        Check(
            name="disk",
            verdict="ok" if free > _MINIMUM_FREE_GB else "note",
            text=f"{free:.0f} GB free here" + ("" if free > _MINIMUM_FREE_GB else "; an atlas needs about 3 kB a cell"),
        ),
    ]


def _device() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check(name="gpu", verdict="note", text="none; training and serving run on CPU")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Check(name="gpu", verdict="ok", text=", ".join(names))


def _attention() -> Check:
    if importlib.util.find_spec("cellmill.training") is None:
        return Check(name="attention", verdict="missing", text="the training part is not installed")
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    backend = importlib.import_module("cellmill.training.model").describe_backend(device)
    return Check(name="attention", verdict="ok", text=f"{backend.name}: {backend.reason}")


def _cluster() -> Check:
    address = os.environ.get("RAY_ADDRESS")
    if address:
        return Check(name="cluster", verdict="ok", text=f"RAY_ADDRESS is {address}; jobs join that cluster")
    return Check(name="cluster", verdict="ok", text="none named; each command starts Ray on this machine")


def _cache() -> Check:
    path = Path(os.environ.get("CELLMILL_CACHE", Path.home() / ".cache" / "cellmill"))
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    writable = os.access(existing, os.W_OK)
    fix = "" if writable else " is not writable; set CELLMILL_CACHE to a folder that is"
    return Check(name="cache", verdict="ok" if writable else "missing", text=f"{path}{fix}")


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Say what is installed, what would run here, and what is missing.

    Ends with exit code 1 if something that Cellmill needs is missing.
    """
    checks = examine()
    missing = [check.name for check in checks if check.verdict == "missing"]

    def render() -> None:
        colours = {"ok": "green", "note": "yellow", "missing": "red"}
        table = Table(show_header=False, box=None, pad_edge=False)
        for check in checks:
            table.add_row(Text(check.verdict, colours[check.verdict]), Text(check.name, "bold"), check.text)
        console.print(table)
        console.print(f"Missing: {', '.join(missing)}" if missing else "Everything that Cellmill needs is here.")

    emit({"checks": [check.model_dump() for check in checks], "missing": missing}, as_json, render)
    if missing:
        raise typer.Exit(1)
