"""Where soak tests write their figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def write_results(name: str, **figures: Any) -> None:
    """Write figures as ``benchmarks/results/<name>.json``; figures of other tests in the file stay."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    there = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**there, **figures}, indent=1, sort_keys=True) + "\n")
