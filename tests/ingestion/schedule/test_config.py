"""What a schedule's YAML may say, and the command that reads it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cellmill import cli
from cellmill.config import parse_config
from cellmill.errors import ConfigError
from cellmill.ingestion.schedule.config import RetryConfig, ScheduleConfig
from tests.ingestion.cells import make_adata, write

RIGHT: dict[str, Any] = {
    "name": "nightly",
    "cron": "0 2 * * *",
    "timezone": "Europe/Berlin",
    "settle_s": 0,
    "ingest": {"atlas": "atlas", "sources": [{"path": "data/*.h5ad"}]},
}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"cron": "0 2 * *"}, "five fields are needed"),
        ({"timezone": "Europe/Atlantis"}, "'Europe/Atlantis' is no time zone"),
        ({"timezone": "../../etc/passwd"}, "is no time zone"),
        ({"name": "a/b"}, "name"),
        ({"ingest": {**RIGHT["ingest"], "output": "here"}}, "`ingest.output`"),
        ({"hook": {"command": ["echo", "{snapshto}"]}}, "{snapshto} is not known"),
        ({"hook": {"command": []}}, "hook.command"),
        ({"vanished": {"policy": "remove", "most": 0}}, "vanished.most"),
        ({"retry": {}}, "'retry' is not a known key"),
        ({"ingest": {**RIGHT["ingest"], "require_licence": ["CC0-1.0"]}}, "has the licence 'unknown'"),
    ],
)
def test_a_wrong_schedule_is_refused(change: dict[str, Any], what: str) -> None:
    assert parse_config(ScheduleConfig, RIGHT, where="here").zone.key == "Europe/Berlin"
    with pytest.raises(ConfigError) as caught:
        parse_config(ScheduleConfig, RIGHT | change, where="here")
    assert what in caught.value.what


def test_pauses_double_up_to_a_bound_and_are_spread() -> None:
    plain = RetryConfig(first_s=10, longest_s=100, jitter=0)
    assert [plain.pause(n, random.Random(0)) for n in (1, 2, 3, 4, 5, 5000)] == [10, 20, 40, 80, 100, 100]
    spread = RetryConfig(first_s=10, longest_s=100, jitter=0.2)
    pauses = {spread.pause(1, random.Random(seed)) for seed in range(50)}
    assert len(pauses) == 50
    assert 8 <= min(pauses) < 9
    assert 11 < max(pauses) <= 12


def test_the_command_line_runs_one_tick(tmp_path: Path) -> None:
    write(make_adata(10), tmp_path / "a.h5ad")
    (tmp_path / "bad.h5ad").write_bytes(b"no h5ad")
    ingest = {"atlas": str(tmp_path / "atlas"), "backend": "local", "sources": [{"path": str(tmp_path / "*.h5ad")}]}
    path = tmp_path / "reingest.yaml"
    path.write_text(yaml.safe_dump(RIGHT | {"ingest": ingest}))

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        result = CliRunner().invoke(cli.app, ["schedule", str(path), "--json", *arguments])
        return result.exit_code, json.loads(result.stdout)

    code, plan = run("--dry-run")
    assert (code, [line["what"] for line in plan["plan"]]) == (0, ["new", "new"])
    code, tick = run("--once")
    assert (code, len(tick["landed"]), len(tick["failed"])) == (1, 1, 1)
    code, tick = run("--once", "--set", "retries.longest_s=3600")
    assert (code, tick["unchanged"], tick["waiting"]) == (0, 1, 1)
