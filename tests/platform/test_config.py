from pathlib import Path

import pytest
from pydantic import ValidationError

from cellmill.config import Config, load_config
from cellmill.errors import ConfigError


class Inner(Config):
    learning_rate: float = 1e-4
    steps: int = 10


class Outer(Config):
    name: str
    inner: Inner = Inner()
    maybe: Inner | None = None


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


def test_file_and_overrides(tmp_path: Path) -> None:
    config = load_config(Outer, write(tmp_path, "name: a\ninner: {steps: 3}"), ["inner.learning_rate=0.5", "name=b"])
    assert config == Outer(name="b", inner=Inner(learning_rate=0.5, steps=3))


def test_resolved_config_reads_back(tmp_path: Path) -> None:
    config = Outer(name="a", maybe=Inner(steps=7))
    config.save(tmp_path / "resolved.yaml")
    again = load_config(Outer, tmp_path / "resolved.yaml")
    assert again == config
    assert again.fingerprint() == config.fingerprint() != Outer(name="a").fingerprint()


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        Outer(name="a").name = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\ninner: {learning_rte: 1}", "inner.learning_rte.*\n.*\n.*Did you mean 'learning_rate'"),
        ("name: a\nmaybe: {step: 1}", "Did you mean 'steps'"),
        ("name: a\nzebra: 1", "Known keys here: inner, maybe, name"),
        ("name: a\ninner: {steps: many}", "inner.steps: .*integer"),
        ("- a\n- b", "mapping"),
        ("a: [", "not valid YAML"),
        ("inner: {}", "name: Field required"),
        ("nmae: a", "'nmae' is not a known key.*Did you mean 'name'"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}") as caught:
        load_config(Outer, write(tmp_path, text))
    assert "c.yaml" in caught.value.where


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(Outer, tmp_path / "nope.yaml")


@pytest.mark.parametrize("item", ["name", "=3", "name.first=3"])
def test_bad_overrides(tmp_path: Path, item: str) -> None:
    with pytest.raises(ConfigError):
        load_config(Outer, write(tmp_path, "name: a"), [item])
