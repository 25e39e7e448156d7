"""The page on streaming: its Python and its commands run as they stand; its picture is that of a real plan."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cellmill.cli import app
from cellmill.config import parse_config
from cellmill.errors import DownloadError
from cellmill.ingestion.datasets import fetch
from cellmill.training import PretrainConfig
from cellmill.training.conditions import ConditionsConfig
from tests.system.documents import DOCS, blocks, configurations
from tests.system.test_ingestion_page import NUMBER

PAGE = DOCS / "streaming.md"
MEASURED = ("cells ", "tokens ", "time ", "one GPU ")
"""Rows of the bench that are another on every machine."""


@pytest.mark.slow
def test_the_page_shows_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        source = fetch("baron_human_pancreas")
    except DownloadError as error:
        pytest.skip(f"the public data set cannot be fetched: {error.what}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copy(source, "pancreas.h5ad")
    for name, text in configurations(PAGE).items():
        Path(name).write_text(text)
    for block in blocks("console", PAGE):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            _run(command, shown.splitlines())
    exec(compile("\n".join(blocks("python", PAGE)), str(PAGE), "exec"), {})


def _run(command: str, shown: list[str]) -> None:
    result = CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False)
    assert result.exit_code == 0, f"{command}\n{result.output}"
    told = result.output
    for line in shown:
        row = line.strip()
        if row.startswith(MEASURED):
            name = next(name for name in MEASURED if row.startswith(name))
            assert re.search(rf"^ {name}", told, flags=re.MULTILINE), f"{command} has no row {name!r}\n{told}"
            continue
        missing = set(NUMBER.findall(line)) - set(NUMBER.findall(told))
        assert not missing, f"{command} does not print {missing}\n{told}"


@pytest.mark.parametrize("name", ["drugs.yaml", "knockouts.yaml"])
def test_configurations_of_conditions_are_valid(name: str) -> None:
    told = {"name": "x", "output": "run", "atlas": "cells-atlas", "steps": 1}
    found = parse_config(PretrainConfig, {**told, **yaml.safe_load(configurations(PAGE)[name])}, where=name)
    assert isinstance(found.conditions, ConditionsConfig)


def test_the_picture_is_that_of_a_plan() -> None:
    drawn = runpy.run_path(str(DOCS / "draw_lanes.py"))["picture"]()
    assert drawn == (DOCS / "lanes.svg").read_text()
