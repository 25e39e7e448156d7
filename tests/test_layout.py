"""The shape of the repository: what must be there, and what must never be."""

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOTS = ("platform", "ingestion", "training", "serving")


def sources() -> list[Path]:
    return [path for root in (*ROOTS, "tests", "benchmarks") for path in (ROOT / root).rglob("*.py")]


def test_the_standard_library_keeps_its_platform_module() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    out = subprocess.run(
        [sys.executable, "-c", "import platform; platform.system()"], cwd=ROOT, capture_output=True, check=False
    )
    assert out.returncode == 0


def test_one_namespace_over_four_roots() -> None:
    assert not [root for root in ROOTS if (ROOT / root / "cellmill" / "__init__.py").exists()]
    parts = [ROOT / "platform/cellmill", *(ROOT / root / "cellmill" / root for root in ROOTS[1:])]
    assert not [part for part in parts if not (part / "py.typed").exists()]


def test_no_file_is_longer_than_500_lines() -> None:
    long = {str(path.relative_to(ROOT)): n for path in sources() if (n := len(path.read_text().splitlines())) > 500}
    assert not long


def test_every_test_folder_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "tests").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_mypy_checks_all_roots() -> None:
    configured = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert set(configured["files"]) == {*ROOTS, "tests"}
    assert configured["strict"]


def test_every_dependency_is_constrained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"], *extras["eval"]]
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    names = {_name(item) for item in wanted} - {"cellmill"}
    assert names <= pinned, names - pinned


def _name(requirement: str) -> str:
    for separator in "[<>=~!; ":
        requirement = requirement.partition(separator)[0]
    return requirement.lower().replace("_", "-")


@pytest.mark.slow
def test_the_wheel_holds_all_of_cellmill(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("cellmill/")}
    tracked = subprocess.run(["git", "ls-files", *ROOTS], cwd=ROOT, capture_output=True, text=True, check=True)
    wanted = {name.partition("/")[2] for name in tracked.stdout.split()}
    assert wanted <= inside, sorted(wanted - inside)[:5]


def test_nothing_unpickles() -> None:
    words = ("import pickle\n", "pickle.load", "torch.load(", "allow_pickle=True", "yaml.load(")
    found = {
        f"{path.relative_to(ROOT)}: {word}"
        for root in ROOTS
        for path in (ROOT / root).rglob("*.py")
        for word in words
        if word in path.read_text() and "weights_only=True" not in path.read_text()
    }
    assert not found


def test_json_in_the_package_is_valid() -> None:
    for root in ROOTS:
        for path in (ROOT / root).rglob("*.json"):
            json.loads(path.read_text())
