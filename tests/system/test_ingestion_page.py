"""The page on ingestion: its Python, its configurations and its commands run as they stand and print what it shows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cellmill.cli import app
from cellmill.config import load_config
from cellmill.errors import DownloadError
from cellmill.ingestion import IngestConfig
from cellmill.ingestion.datasets import fetch
from cellmill.ingestion.schedule.config import HookConfig
from tests.system.documents import DOCS, blocks, configurations

PAGE = DOCS / "ingestion.md"
NUMBER = re.compile(r"(?<![\w.:-])\d[\d,]*(?:\.\d+%)?(?![\w.:-])")


def steps() -> Iterator[tuple[str, str]]:
    """Yield each command of the page and what it shows below it."""
    for block in blocks("console", PAGE):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            yield command, shown


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_page_shows_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        fetch("baron_human_pancreas")
    except DownloadError as error:
        pytest.skip(f"the public data set cannot be fetched: {error.what}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (code,) = blocks("python", PAGE)
    exec(compile(code, str(PAGE), "exec"), {})
    for name, text in configurations(PAGE).items():
        Path(name).write_text(text)
    load_config(IngestConfig, "multiome.yaml")
    HookConfig.model_validate(yaml.safe_load(Path("hook.yaml").read_text())["hook"])
    for command, shown in steps():
        result = CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False)
        assert result.exit_code == 0, f"{command}\n{result.output}"
        numbers = set(NUMBER.findall(result.output))
        missing = [number for number in NUMBER.findall(shown) if number not in numbers and len(number) > 1]
        assert not missing, f"{command} does not print {missing}\n{result.output}"
