"""Thousands of steps of the atlas's state machine."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.ingestion.atlas_machine import COUNTS, AtlasMachine

pytestmark = pytest.mark.soak

EXAMPLES = int(os.environ.get("CELLMILL_SOAK_EXAMPLES", "100"))
STEPS = 30
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "atlas_state_machine.json"


def test_an_atlas_is_what_its_model_says() -> None:
    start = time.monotonic()
    COUNTS.clear()
    run_state_machine_as_test(
        AtlasMachine, settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None)
    )
    record = {
        "examples": EXAMPLES,
        "steps_at_most": STEPS,
        "rules_run": dict(sorted(COUNTS.items())),
        "seconds": round(time.monotonic() - start, 1),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    refused = ("rollback to a forgotten one", "rollback to withdrawn cells", "tag of a forgotten one")
    done = ("ingest", "ingest unchanged", "crash", "withdraw", "lift", "rollback", "tag", "untag", "gc", "gc --forget")
    known = ("ingest of cells that are known",)
    assert all(COUNTS[name] for name in (*done, *refused, *known))
