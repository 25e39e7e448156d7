"""A schedule in its own process, by a clock that is turned by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests

from cellmill.errors import ConfigError, SourceError
from cellmill.ingestion import pipeline
from cellmill.ingestion.schedule import loop, tick
from cellmill.ingestion.schedule.config import ScheduleConfig
from cellmill.ingestion.schedule.landing import land
from cellmill.ingestion.schedule.loop import Scheduler
from cellmill.ingestion.schedule.report import TickReport
from cellmill.ingestion.schedule.server import serving
from cellmill.lock import acquire
from cellmill.storage import Storage
from tests.ingestion.cells import make_adata, write
from tests.ingestion.schedule.clockwork import DAY, START, FakeClock, schedule, scheduler

pytestmark = pytest.mark.usefixtures("without_plots")

HOUR = timedelta(hours=1)


def run(config: ScheduleConfig, clock: FakeClock) -> list[TickReport]:
    reports: list[TickReport] = []
    with pytest.raises(KeyboardInterrupt):
        scheduler(config, clock).run(reports.append)
    return reports


def test_it_runs_when_the_expression_says(tmp_path: Path) -> None:
    clock = FakeClock(START - HOUR, end=START + 3 * DAY)
    config = schedule(tmp_path / "atlas", write(make_adata(10), tmp_path / "a.h5ad"))
    reports = run(config, clock)
    assert clock.slept == [START + n * DAY for n in range(4)]
    assert [report.outcome for report in reports] == ["changed", "unchanged", "unchanged", "unchanged"]
    status = json.loads((tmp_path / "atlas/schedule/nightly/status.json").read_text())
    assert status["state"] == "stopped"


def test_ticks_during_a_run_are_skipped_and_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(START - HOUR, end=START + DAY)
    config = schedule(tmp_path / "atlas", write(make_adata(10), tmp_path / "a.h5ad"), cron="0 * * * *")

    def slow(*arguments: Any) -> Any:
        status = json.loads((tmp_path / "atlas/schedule/nightly/status.json").read_text())
        # What is due next lies ahead while a tick runs, too.
        assert (status["state"], datetime.fromisoformat(status["next"])) == ("running", clock.time + HOUR)
        clock.time += timedelta(hours=2, minutes=30)
        return land(*arguments)

    monkeypatch.setattr(tick, "land", slow)
    reports = run(config, clock)
    assert [(report.outcome, report.due) for report in reports[:5]] == [
        ("changed", START),
        ("skipped", START + HOUR),
        ("skipped", START + 2 * HOUR),
        ("unchanged", START + 3 * HOUR),
        ("unchanged", START + 4 * HOUR),
    ]
    lines = (tmp_path / "atlas/schedule/nightly/log-2026-03.jsonl").read_text().splitlines()
    skipped = [line["text"] for line in map(json.loads, lines) if line["event"] == "skipped"]
    assert skipped == [
        f"the tick of 2026-03-01 0{hour}:00 UTC is skipped: the tick of 02:00 was still running" for hour in (3, 4)
    ]


def test_what_failed_is_tried_again_before_the_next_tick_a_few_times(tmp_path: Path) -> None:
    (tmp_path / "bad.h5ad").write_bytes(b"no h5ad")
    clock = FakeClock(START - HOUR, end=START + DAY)
    config = schedule(tmp_path / "atlas", tmp_path / "bad.h5ad", retries={"attempts": 2, "first_s": 60, "jitter": 0})
    reports = run(config, clock)
    minutes = [(moment - START).total_seconds() / 60 for moment in clock.slept]
    assert minutes == [0, 1, 3, 24 * 60]
    assert [report.failed[0].failures for report in reports] == [1, 2, 3, 4]


def test_a_tick_that_fails_as_a_whole_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(make_adata(10), tmp_path / "a.h5ad")
    left = [3]

    def failing(*arguments: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise SourceError("The store does not answer.")
        return acquire(*arguments, **more)

    monkeypatch.setattr(loop, "acquire", failing)
    clock = FakeClock()
    config = schedule(tmp_path / "atlas", path, retries={"first_s": 60, "jitter": 0})
    assert scheduler(config, clock).once().outcome == "changed"
    assert [(moment - START).total_seconds() for moment in clock.slept] == [60, 180, 420]
    left[0] = 9
    last = scheduler(config, clock).once()
    assert (last.outcome, last.is_well, last.retry) == ("failed", False, None)
    assert "The store does not answer." in last.detail


def test_a_tick_that_was_cut_off_is_taken_up_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = schedule(tmp_path / "atlas", write(make_adata(10), tmp_path / "a.h5ad"))

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal was not heard")

    with monkeypatch.context() as patch:
        patch.setattr(tick, "land", interrupted)
        with pytest.raises(SystemExit) as ended:
            scheduler(config, FakeClock()).once()
    assert ended.value.code == 128 + signal.SIGTERM
    status = json.loads((tmp_path / "atlas/schedule/nightly/status.json").read_text())
    assert (status["state"], status["history"][0]["outcome"]) == ("stopped", "stopped")
    lock = acquire(Storage.open(tmp_path / "atlas"), "schedule-nightly")
    assert lock is not None
    lock.release()
    clock = FakeClock(START + HOUR, end=START + 2 * HOUR)
    assert [report.outcome for report in run(config, clock)] == ["changed"]
    assert clock.slept == [START + HOUR]


@pytest.mark.parametrize(
    ("code", "ok", "outcome"),
    [
        ("import os; print(os.environ['CELLMILL_DATASETS'], os.environ['CELLMILL_SNAPSHOT'])", True, "ended well"),
        ("raise SystemExit(3)", False, "ended with code 3"),
        ("import time; time.sleep(60)", False, "was stopped after 1 s"),
    ],
)
def test_a_hook_runs_after_a_change_and_again_if_it_failed(tmp_path: Path, code: str, ok: bool, outcome: str) -> None:
    paths = [write(make_adata(10, seed=seed), tmp_path / f"{seed}.h5ad") for seed in range(2)]
    command = [sys.executable, "-c", code, "{atlas}", "snapshot={snapshot}", '{"as": "is"}']
    clock = FakeClock()
    config = schedule(
        tmp_path / "atlas",
        *paths,
        hook={"command": command, "timeout_s": 1 if "sleep" in code else 60},
        retries={"jitter": 0},
    )
    report = scheduler(config, clock).once()
    assert report.hook is not None
    assert (report.hook.ok, report.hook.outcome, report.is_well) == (ok, outcome, ok)
    assert report.hook.command[3:] == (str(tmp_path / "atlas"), "snapshot=2", '{"as": "is"}')
    assert (report.outcome, report.snapshot) == ("changed", 2)
    assert Path(report.hook.log).read_text() == ("0,1 2\n" if ok else "")
    waiting = scheduler(config, clock).once()
    assert waiting.hook is None
    clock.time += timedelta(seconds=60)
    again = scheduler(config, clock).once()
    assert (again.hook is None) == ok


def test_a_hook_that_cannot_be_run_undoes_nothing(tmp_path: Path) -> None:
    path = write(make_adata(10), tmp_path / "a.h5ad")
    config = schedule(tmp_path / "atlas", path, hook={"command": ["/no/such/program"]})
    report = scheduler(config, FakeClock()).once()
    assert report.hook is not None
    assert report.hook.outcome.startswith("cannot be run")
    assert report.landed[0].committed


def test_the_status_is_served_on_the_loopback(tmp_path: Path) -> None:
    folder = tmp_path / "public"
    path = write(make_adata(10), tmp_path / "<b>.h5ad")
    config = schedule(tmp_path / "atlas", path, status={"port": None, "directory": str(folder), "refresh_s": 7})
    one = Scheduler(config, FakeClock())
    one.once()
    with serving(one.board, 0) as url:
        page = requests.get(f"{url}/", timeout=10)
        status = requests.get(f"{url}/status.json", timeout=10).json()
        assert requests.get(f"{url}/etc/passwd", timeout=10).status_code == 404
        with pytest.raises(ConfigError, match="cannot be served"), serving(one.board, int(str(url).rpartition(":")[2])):
            pass
    assert 'content="7"' in page.text
    assert "&lt;b&gt;.h5ad" in page.text
    assert (status["state"], status["history"][0]["outcome"]) == ("waiting", "changed")
    assert datetime.fromisoformat(status["next"]) == START + DAY
    assert json.loads((folder / "status.json").read_text()) == status
    assert (folder / "status.html").read_text() == (tmp_path / "atlas/schedule/nightly/status.html").read_text()


def test_a_real_process_serves_ticks_and_stops_on_a_signal(tmp_path: Path) -> None:
    write(make_adata(10), tmp_path / "a.h5ad")
    (tmp_path / "reingest.yaml").write_text(
        f"name: nightly\ncron: '* * * * *'\ningest: {{atlas: {tmp_path}/atlas, backend: local, sources: "
        f"[{{path: {tmp_path}/*.h5ad}}]}}\nstatus: {{port: null}}\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-m", "cellmill.cli", "schedule", str(tmp_path / "reingest.yaml"), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    assert "nightly: next tick" in child.stderr.readline()
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 128 + signal.SIGTERM, err
    status = json.loads((tmp_path / "atlas/schedule/nightly/status.json").read_text())
    assert status["state"] == "stopped"
    assert datetime.fromisoformat(status["updated"]).tzinfo == UTC


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    config = schedule(
        tmp_path / "atlas", write(make_adata(10), tmp_path / "a.h5ad"), output=str(tmp_path / "file" / "output")
    )
    assert scheduler(config, FakeClock()).once().outcome == "changed"
    assert "The log cannot be written" in capsys.readouterr().err


def test_a_source_that_fails_after_its_commit_still_has_its_hook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(make_adata(10), tmp_path / "a.h5ad")
    hook = {"command": [sys.executable, "-c", "import os; print(os.environ['CELLMILL_DATASETS'])"]}
    config = schedule(tmp_path / "atlas", path, hook=hook, retries={"jitter": 0})
    clock = FakeClock()

    def failing(*_: Any) -> Path:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_run", failing)
        first = scheduler(config, clock).once()
    assert (first.failed[0].error["what"], first.hook) == ("OSError: No space left on device", None)
    clock.time += HOUR
    second = scheduler(config, clock).once()
    assert ([landing.committed for landing in second.landed], second.snapshot) == ([True], 1)
    assert second.hook is not None
    assert Path(second.hook.log).read_text() == "a\n"
    assert scheduler(config, clock).once().hook is None
