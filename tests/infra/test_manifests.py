"""Manifests against the schemas of Kubernetes and of KubeRay, and what is in them against Cellmill itself."""

from __future__ import annotations

import importlib.util
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from cellmill.cli import COMMANDS
from cellmill.config import parse_config
from cellmill.ingestion.schedule.config import ScheduleConfig

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT.parent / "shared" / "kuberay"
MANIFESTS = sorted((ROOT / "infra" / "kuberay").glob("*.yaml"))
KUBERNETES = "1.33"

Resource = dict[str, Any]


def resources(path: Path) -> list[Resource]:
    """Return the resources of a file, and those that its ConfigMaps hold as text."""
    found = [one for one in yaml.safe_load_all(path.read_text()) if one]
    inner = [yaml.safe_load(text) for one in found if one["kind"] == "ConfigMap" for text in one["data"].values()]
    return [*found, *(one for one in inner if "kind" in one)]


ALL = [
    pytest.param(path, number, id=f"{path.stem}-{one['kind']}-{number}")
    for path in MANIFESTS
    for number, one in enumerate(resources(path))
]


def job_specs(path: Path) -> list[Resource]:
    """Return the specifications of all RayJobs of a file."""
    every = resources(path)
    jobs = [one["spec"] for one in every if one["kind"] == "RayJob"]
    return [*jobs, *(one["spec"]["jobTemplate"] for one in every if one["kind"] == "RayCronJob")]


def values(node: Any, key: str) -> Iterator[Any]:
    """Yield all values of a key, however deep."""
    if isinstance(node, dict):
        yield from (value for name, value in node.items() if name == key)
        for value in node.values():
            yield from values(value, key)
    elif isinstance(node, list):
        for item in node:
            yield from values(item, key)


@pytest.mark.parametrize(("path", "number"), ALL)
def test_a_resource_is_what_the_server_accepts(path: Path, number: int) -> None:
    resource = resources(path)[number]
    if not resource["apiVersion"].startswith("ray.io/"):
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)
        resource["misspelt"] = 1
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(resource, KUBERNETES, strict=True)
        return
    schema = SCHEMAS / f"{resource['kind'].lower()}.schema.json"
    if not schema.exists():
        pytest.skip("the schemas of KubeRay are not at hand (no folder shared/kuberay beside the checkout)")
    validator = jsonschema.Draft7Validator(json.loads(schema.read_text()))
    assert not [error.message for error in validator.iter_errors(resource)]
    resource["spec"]["misspelt"] = 1
    assert [error.message for error in validator.iter_errors(resource)]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_calls_what_exists(path: Path) -> None:
    specs = job_specs(path)
    assert specs
    for spec in specs:
        program, command, *_ = shlex.split(spec["entrypoint"])
        assert program == "cellmill"
        assert command in COMMANDS
    for command in values(resources(path), "command"):
        assert command[:2] == ["python", "-m"]
        assert importlib.util.find_spec(command[2]) is not None


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_names_what_it_brings(path: Path) -> None:
    every = resources(path)
    brought = {(one["kind"], one["metadata"].get("name")) for one in every}
    if ("ConfigMap", "cellmill-schedule") in brought:
        used = {volume["configMap"]["name"] for volumes in values(every, "volumes") for volume in volumes}
        assert {("ConfigMap", name) for name in used} <= brought
    assert {("ServiceAccount", name) for name in values(every, "serviceAccountName")} <= brought


@pytest.mark.parametrize(
    "path", [path for path in MANIFESTS if path.name.startswith("schedule-")], ids=lambda path: path.name
)
def test_a_schedule_in_a_manifest_is_one_and_says_the_same_time(path: Path) -> None:
    every = resources(path)
    (text,) = [one["data"]["reingest.yaml"] for one in every if "reingest.yaml" in one.get("data", {})]
    config = parse_config(ScheduleConfig, yaml.safe_load(text), where=path.name)
    (timer,) = [one["spec"] for one in every if one["kind"] in ("RayCronJob", "CronJob")]
    assert (config.cron, config.timezone) == (timer["schedule"], timer["timeZone"])
    (spec,) = job_specs(path)
    assert spec["entrypoint"].endswith("--once")
    assert spec["backoffLimit"] == 0
    assert "lock" in path.read_text().partition("apiVersion")[0]
    if "concurrencyPolicy" in timer:
        assert timer["concurrencyPolicy"] == "Forbid"
        assert timer["jobTemplate"]["spec"]["activeDeadlineSeconds"] > spec["activeDeadlineSeconds"]
        (role,) = [one for one in every if one["kind"] == "Role"]
        assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}]
