"""What a CronJob runs, against a server that answers as Kubernetes does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cellmill.errors import CellmillError, ConfigError, ResourceError
from cellmill.ingestion.schedule.rayjob import run_rayjob

PATH = "/apis/ray.io/v1/namespaces/cells/rayjobs"


class Kubernetes:
    """Makes RayJobs, and tells of one status after the other."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        self.statuses: list[Any] = []
        self.tokens: list[str] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.created.append(body)
                fake.tokens.append(self.headers["Authorization"])
                allowed = self.path == PATH and "forbidden" not in body["metadata"]
                self.answer(201 if allowed else 403, {"metadata": {"name": "reingest-x7"}})

            def do_GET(self) -> None:
                assert self.path == f"{PATH}/reingest-x7"
                status = fake.statuses.pop(0)
                self.answer(status, {}) if isinstance(status, int) else self.answer(200, {"status": status})

            def answer(self, code: int, body: Any) -> None:
                self.send_response(code)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.api = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def kubernetes() -> Iterator[Kubernetes]:
    fake = Kubernetes()
    thread = threading.Thread(target=fake.server.serve_forever, daemon=True)
    thread.start()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


def run(fake: Kubernetes, folder: Path, job: dict[str, Any], **more: Any) -> str:
    (folder / "namespace").write_text("cells\n")
    (folder / "token").write_text("secret\n")
    (folder / "rayjob.yaml").write_text(json.dumps(job))
    return run_rayjob(folder / "rayjob.yaml", fake.api, account=folder, poll_s=0, **more)


JOB = {"kind": "RayJob", "metadata": {"generateName": "reingest-"}}


def test_it_waits_for_the_end(tmp_path: Path, kubernetes: Kubernetes) -> None:
    done = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
    kubernetes.statuses = [{}, 503, {"jobDeploymentStatus": "Running"}, done]
    assert run(kubernetes, tmp_path, JOB) == "reingest-x7"
    assert (kubernetes.created, kubernetes.tokens) == ([JOB], ["Bearer secret"])
    assert not kubernetes.statuses


@pytest.mark.parametrize(
    ("job", "statuses", "kind", "what"),
    [
        (JOB, [{"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "exit 1"}], ResourceError, "exit 1"),
        (JOB, [{"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}], ResourceError, "STOPPED"),
        (JOB, [404], ConfigError, "HTTP 404"),
        (JOB, [500, 500, 500], ResourceError, "may still run"),
        ({"kind": "RayJob", "metadata": {"forbidden": 1}}, [], ConfigError, "HTTP 403"),
        ({"kind": "RayService"}, [], ConfigError, "no RayJob"),
    ],
)
def test_what_fails_is_an_error(
    tmp_path: Path,
    kubernetes: Kubernetes,
    job: dict[str, Any],
    statuses: list[Any],
    kind: type[CellmillError],
    what: str,
) -> None:
    kubernetes.statuses = list(statuses)
    with pytest.raises(kind, match=what):
        run(kubernetes, tmp_path, job, patience=3)
