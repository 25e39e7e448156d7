import importlib
import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from cellmill import cli
from cellmill.errors import ConfigError, ResourceError


def test_the_tour_names_every_command() -> None:
    result = CliRunner().invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    for name in cli.COMMANDS:
        assert name in result.output


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_explains_itself(name: str) -> None:
    result = CliRunner().invoke(cli.app, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage" in result.output


def test_the_tour_imports_nothing_heavy() -> None:
    heavy = "{'ray', 'torch', 'deepspeed', 'anndata'}"
    code = f"import sys; from cellmill import cli; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_errors_set_the_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ConfigError("Bad [key].", where="c.yaml", fix="Mend it.")

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "argv", ["cellmill"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == ConfigError.exit_code
    assert "Bad [key]." in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["cellmill", "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    assert json.loads(capsys.readouterr().out)["error"]["fix"] == "Mend it."


def test_no_memory_is_no_defect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise MemoryError("Unable to allocate 1.5 TiB.")

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "argv", ["cellmill", "--json"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == ResourceError.exit_code
    assert "1.5 TiB" in json.loads(capsys.readouterr().out)["error"]["what"]


def test_doctor_finds_this_environment_complete() -> None:
    result = CliRunner().invoke(cli.app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert checks["ray"]["text"] == importlib.metadata.version("ray")
    assert checks["attention"]["verdict"] == "ok"
