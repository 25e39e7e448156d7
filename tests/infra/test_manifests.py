"""Manifests against the schemas of KubeRay's resources, and their commands against the command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cellmill.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT.parent / "shared" / "kuberay"
MANIFESTS = sorted((ROOT / "infra" / "kuberay").glob("*.yaml"))


def load(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(path.read_text())
    return data


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_is_what_kuberay_accepts(path: Path) -> None:
    manifest = load(path)
    schema = SCHEMAS / f"{manifest['kind'].lower()}.schema.json"
    if not schema.exists():
        pytest.skip("the schemas of KubeRay are not at hand (no folder shared/kuberay beside the checkout)")
    validator = jsonschema.Draft7Validator(json.loads(schema.read_text()))
    assert not [error.message for error in validator.iter_errors(manifest)]
    manifest["spec"]["misspelt"] = 1
    assert [error.message for error in validator.iter_errors(manifest)]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_calls_a_command_that_exists(path: Path) -> None:
    program, command, *_ = shlex.split(load(path)["spec"]["entrypoint"])
    assert program == "cellmill"
    assert command in COMMANDS
