"""Ingest, append, replace, crash, withdraw, lift, tag, roll back, collect and forget, in any order."""

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.ingestion.atlas_machine import AtlasMachine


def test_an_atlas_is_what_its_model_says() -> None:
    run_state_machine_as_test(AtlasMachine, settings=settings(max_examples=6, stateful_step_count=15, deadline=None))
