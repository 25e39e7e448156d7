"""Bringing the application up on a connected cluster, with a clear error where that fails, and taking it down."""

from __future__ import annotations

import logging
import socket
import time
from typing import Any

import requests

from cellmill.cluster import require_cpus
from cellmill.errors import ConfigError, ModelError, ResourceError
from cellmill.models import load_model
from cellmill.serving.config import ServeConfig

APPLICATION = "cellmill"
_POLL_S = 0.2
_ANSWER_S = 30.0


def verify_models(config: ServeConfig) -> None:
    """Verify the model folders, before any cluster is started for them.

    Raises
    ------
    ModelError, IntegrityError
        A folder is missing, incomplete or damaged.
    """
    for model in config.models:
        load_model(model.path)


def start(config: ServeConfig) -> None:
    """Start the application and return when it answers.

    Raises
    ------
    ConfigError
        The port is taken, Ray Serve of this cluster listens elsewhere, or serves an endpoint of ours already.
    ResourceError
        The cluster has too little for the replicas.
    ModelError
        A model does not start.
    """
    from ray import serve

    from cellmill.serving.deployments import build

    application = build(config)
    _require_resources(config)
    if serve.status().proxies:
        _require_same_place(config)
    else:
        _require_port(config)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        serve.start(
            proxy_location="EveryNode",
            http_options={
                "host": config.host,
                "port": config.port,
                "request_timeout_s": config.request_seconds,
                "keep_alive_timeout_s": 30,
            },
            logging_config={"enable_access_log": False, "log_level": "WARNING"},
        )
        target = serve.RunTarget(application, name=APPLICATION, route_prefix="/")
        serve.run_many([target], wait_for_applications_running=False)
        _wait_until_running(config)
        _wait_until_answering(config)
    except BaseException:
        stop()
        raise


def stop() -> None:
    """Stop the application, and Ray Serve too if nothing else is served."""
    from ray import serve

    if APPLICATION in serve.status().applications:
        serve.delete(APPLICATION)
    if not serve.status().applications:
        serve.shutdown()


def _require_resources(config: ServeConfig) -> None:
    import ray

    models = sum(model.replicas * model.cpus for model in config.models)
    require_cpus(config.replicas, config.cpus, models)
    gpus = sum(model.replicas * model.gpus for model in config.models)
    there = float(ray.cluster_resources().get("GPU", 0.0))
    if gpus > there:
        raise ResourceError(
            f"The models ask for {gpus:g} GPUs; the cluster has {there:g}.",
            where="models",
            fix="Lower `gpus` or `replicas` of the models.",
        )


def _require_port(config: ServeConfig) -> None:
    try:
        with socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((config.host, config.port))
    except OSError as error:
        raise ConfigError(
            f"The endpoint cannot listen there: {error.strerror or error}.",
            where=f"{config.host}:{config.port}",
            fix="Choose another `port`, or stop what listens there.",
        ) from error


def _require_same_place(config: ServeConfig) -> None:
    """Check that Ray Serve, which runs already, listens where it should and does not serve an endpoint of ours."""
    from ray import serve

    if APPLICATION in serve.status().applications:
        raise ConfigError(
            "This cluster serves an endpoint already.",
            where=config.url,
            fix="Stop it first, add the model to its configuration, or use another cluster.",
        )
    try:
        requests.get(f"{config.url}/-/healthz", timeout=5)
    except requests.RequestException as error:
        raise ConfigError(
            "Ray Serve runs on this cluster and does not listen there; where it listens is fixed when it starts.",
            where=config.url,
            fix="Use the `host` and `port` of the other application, or another cluster.",
        ) from error


def _wait_until_running(config: ServeConfig) -> None:
    from ray import serve

    end = time.monotonic() + config.start_seconds
    while True:
        application = serve.status().applications.get(APPLICATION)
        status = str(application.status.value) if application else "NOT_STARTED"
        if status == "RUNNING":
            return
        late = time.monotonic() > end
        if late or status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise _failure(application, config, late)
        time.sleep(_POLL_S)


def _failure(application: Any, config: ServeConfig, late: bool) -> ModelError | ResourceError:
    reports = {
        name: deployment.message for name, deployment in (application.deployments if application else {}).items()
    }
    waiting = [name for name, message in reports.items() if "resources" in message.lower()]
    if late and waiting:
        return ResourceError(
            f"{', '.join(waiting)} waited {config.start_seconds:g} s for room on the cluster.",
            where="models",
            fix="Stop what else runs there, lower `cpus` of the models, or add nodes.",
        )
    messages = [f"{name}: {_last_line(message)}" for name, message in reports.items() if message]
    what = f"did not start within {config.start_seconds:g} s" if late else "did not start"
    return ModelError(
        f"The models {what}. {' '.join(messages)}".strip(),
        where=", ".join(str(model.path) for model in config.models),
        fix="The replicas' logs are below /tmp/ray/session_latest/logs/serve.",
    )


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _wait_until_answering(config: ServeConfig) -> None:
    """Ask for the list of models: routes reach the proxy a moment after the application runs."""
    wanted = [model.name for model in config.models]
    end = time.monotonic() + _ANSWER_S
    while time.monotonic() < end:
        try:
            answer = requests.get(f"{config.url}/healthz", timeout=5)
            if answer.status_code == 200 and answer.json().get("models") == wanted:
                return
        except (requests.RequestException, ValueError):
            pass  # not there yet; the clock decides
        time.sleep(_POLL_S)
    raise ModelError("The endpoint was started and does not answer.", where=config.url, fix="Look at Ray Serve's logs.")
