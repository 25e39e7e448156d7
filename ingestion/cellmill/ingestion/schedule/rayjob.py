"""Create a RayJob in the Kubernetes cluster that this pod runs in, and wait for its end.

``python -m cellmill.ingestion.schedule.rayjob rayjob.yaml`` is what a plain CronJob runs where there is no RayCronJob.
Since it waits, the CronJob's ``concurrencyPolicy`` is about the RayJob and not only about its creation.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import requests
import yaml

from cellmill.cli import report
from cellmill.errors import CellmillError, ConfigError, ResourceError

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_POLL_S = 15.0
_TIMEOUT_S = 30.0
_PATIENCE = 20
"""Failed looks in a row before the wait is given up."""

_ENDS = ("Complete", "Failed", "ValidationFailed")


def run_rayjob(
    manifest: Path, api: str, *, account: Path = _ACCOUNT, poll_s: float = _POLL_S, patience: int = _PATIENCE
) -> str:
    """Create a RayJob and wait for it; returns its name.

    Parameters
    ----------
    manifest
        The RayJob as YAML; ``generateName`` gives each its own name.
    api
        URL of the API server.
    account
        Folder with the service account's token, name space and certificate authority.
    poll_s
        Seconds between two looks.
    patience
        Failed looks in a row before the wait is given up.

    Raises
    ------
    ConfigError
        The manifest is no RayJob, or the server refuses it.
    ResourceError
        The RayJob failed, was deleted, or nothing answers any more.
    """
    job = yaml.safe_load(manifest.read_text())
    if not isinstance(job, dict) or job.get("kind") != "RayJob":
        raise ConfigError("The manifest is no RayJob.", where=str(manifest))
    namespace = (account / "namespace").read_text().strip()
    url = f"{api}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
    created = _ask("POST", url, account, job)
    if created is None:
        raise ResourceError("The API server does not answer.", where=url)
    name = str(created["metadata"]["name"])
    missed = 0
    while missed < patience:
        time.sleep(poll_s)
        found = _ask("GET", f"{url}/{name}", account)
        missed = missed + 1 if found is None else 0
        status: dict[str, Any] = (found or {}).get("status", {})
        if status.get("jobDeploymentStatus") in _ENDS:
            if status.get("jobStatus") == "SUCCEEDED":
                return name
            message = status.get("message") or status.get("reason") or status.get("jobStatus") or "no reason is given"
            raise ResourceError(f"The RayJob failed: {message}", where=name, fix=f"kubectl describe rayjob {name}")
    raise ResourceError("The API server does not answer; the RayJob may still run.", where=name)


def _ask(method: str, url: str, account: Path, body: Any = None) -> dict[str, Any] | None:
    """Return the server's answer, None where a later request may have one."""
    certificate = account / "ca.crt"
    try:
        answer = requests.request(
            method,
            url,
            json=body,
            # Read each time: the token of a pod that waits for hours is replaced.
            headers={"Authorization": f"Bearer {(account / 'token').read_text().strip()}"},
            verify=str(certificate) if certificate.exists() else True,
            timeout=_TIMEOUT_S,
        )
    except requests.RequestException:
        return None
    if answer.status_code in (429, 500, 502, 503, 504):
        return None
    if not answer.ok:
        raise ConfigError(
            f"The API server refuses (HTTP {answer.status_code}): {answer.text[:500]}",
            where=url,
            fix="Check the role of the service account, and that KubeRay is installed.",
        )
    found: dict[str, Any] = answer.json()
    return found


def main() -> None:
    """Run the RayJob that the command line names."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    try:
        if len(sys.argv) != 2 or host is None:
            raise ConfigError("This runs in a pod and takes one manifest.", fix=f"{sys.argv[0]} rayjob.yaml")
        print(f"{run_rayjob(Path(sys.argv[1]), f'https://{host}:{port}')} succeeded")
    except CellmillError as error:
        report(error, as_json=False)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
