"""What users write is printed as it stands, though it look like markup or like a picture."""

from __future__ import annotations

import glob
import re
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cellmill import console
from cellmill.atlas import Atlas
from cellmill.atlas.withdrawing import remove
from cellmill.cli import main
from cellmill.errors import AtlasError, ConfigError
from cellmill.ingestion import IngestConfig, ingest
from tests.ingestion.cells import make_adata, write

Say = Callable[..., str]

TEXTS = ["[/b]MIT", "benzo[a]pyrene", "benzo[e]pyrene", "[red]x[/red]", "[link=http://x]y", ":smile:", "a\\[b]"]
FILES = [text.replace("/", "_").replace("\\", "_") for text in TEXTS]
WHERE = 'donor in ["[/b]MIT", "benzo[a]pyrene", "[red]x[/red]"] and age < 5'


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    monkeypatch.setattr(console.console, "_width", 1000)  # the console asked for COLUMNS when it was made

    def run(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["cellmill", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr().err
        assert (end.value.code or 0) == code, said
        return said

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an atlas of a file for each text, and its configuration."""
    folder = tmp_path_factory.mktemp("text")
    sources = []
    for i, text in enumerate(TEXTS):
        adata = make_adata(20, seed=i)
        adata.obs["donor"] = text
        path = write(adata, folder / f"{FILES[i]}.h5ad")
        sources.append({"path": glob.escape(str(path)), "licence": text, "organism": "human", "obs": "all"})
    config = {"atlas": str(folder / "atlas"), "backend": "local", "sources": sources}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    ingest(IngestConfig.model_validate(config))
    remove(Atlas.open(folder / "atlas"), WHERE, "[/b] consent")
    return folder


@pytest.mark.parametrize(
    ("command", "expected", "code"),
    [
        ("ingest CONFIG --dry-run", [f"{name}.h5ad" for name in FILES], 0),
        ("atlas show ATLAS", [*TEXTS, *(f"{name}.h5ad" for name in FILES), WHERE, "[/b] consent"], 0),
        ("atlas show ATLAS --dataset benzo_a_pyrene", ["  licence benzo[a]pyrene"], 0),
        ("atlas query ATLAS --count donor", TEXTS, 0),
        ("atlas query ATLAS --columns donor --limit 200", TEXTS, 0),
        ("atlas log ATLAS", [WHERE], 0),
        ("atlas diff ATLAS 1", [], 0),
        ("atlas leakage ATLAS -w WHERE -w age>9", [WHERE], ConfigError.exit_code),
        ('atlas leakage ATLAS -w donor=="[/b]MIT" -w age<9', ['donor=="[/b]MIT"', ": [/b]MIT"], 0),
        ("atlas tag ATLAS v1 -m [/b]", [], 0),
        ("atlas tag ATLAS", ["[/b]"], 0),
        ("lineage --forward ATLAS#1 --root ROOT", [WHERE], 0),
        ("lineage ATLAS --root ROOT", TEXTS, 0),
        ("atlas show ATLAS --dataset [/b]we[i]rd", ["'[/b]we[i]rd'"], AtlasError.exit_code),
    ],
)
def test_commands_print_it_as_it_is(folder: Path, say: Say, command: str, expected: list[str], code: int) -> None:
    values = {"CONFIG": str(folder / "config.yaml"), "ATLAS": str(folder / "atlas"), "ROOT": str(folder)}
    arguments = [WHERE if word == "WHERE" else _filled(word, values) for word in command.split()]
    said = say(*arguments, code=code)
    assert [text for text in expected if text not in said] == []


def _filled(word: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def test_progress_describes_it_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = StringIO()
    monkeypatch.setattr(console, "console", Console(file=shown, force_terminal=True, width=120))
    with console.progress(2, "reading [/b]we[i]rd.h5ad", unit="[/red]cells") as advance:
        advance(2)
    assert "reading [/b]we[i]rd.h5ad" in shown.getvalue()
    assert "[/red]cells" in shown.getvalue()


HOSTILE = "MIT\x1b[2J\x1b]0;title\x07\x9b31m \u202eevil\u2066\x7f\r"
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def test_text_that_steers_a_terminal_reaches_neither_terminal_nor_page(tmp_path: Path, say: Say) -> None:
    adata = make_adata(20)
    adata.obs["donor"] = HOSTILE
    path, atlas = write(adata, tmp_path / "a\x1b[2J.h5ad"), tmp_path / "atlas"
    source = {"path": glob.escape(str(path)), "licence": HOSTILE, "organism": "human", "obs": "all", "dataset": "a"}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"atlas": str(atlas), "backend": "local", "sources": [source]}))
    said = [say("ingest", str(config), "--dry-run"), say("ingest", str(config)), say("ingest", str(config))]
    said += [say("atlas", "show", str(atlas)), say("atlas", "show", str(atlas), "--dataset", "a")]
    said += [say("atlas", "query", str(atlas), "--count", "donor"), say("lineage", str(atlas), "--root", str(tmp_path))]
    said.append(say("atlas", "show", str(atlas), "--dataset", HOSTILE, code=AtlasError.exit_code))
    assert [text for text in said if STEERING.search(text)] == []
    shown = "MIT\u241b[2J\u241b]0;title\u2407\ufffd31m \ufffdevil\ufffd\u2421\u240d"
    assert shown in said[5]
    page = next((atlas / "reports/runs").glob("*/report.html"))
    pages = [page.read_text()]
    say("report", str(page.parent), "-o", str(tmp_path / "page.html"))
    pages.append((tmp_path / "page.html").read_text())
    assert [page for page in pages if STEERING.search(page)] == []
    assert shown in pages[0]


def test_a_terminal_gets_its_own_codes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = StringIO()
    own = console._PrintableConsole(file=shown, force_terminal=True, width=120, color_system="standard", markup=False)
    monkeypatch.setattr(console, "console", own)
    table = Table("donor")
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE, "red"))
    own.print(table)
    own.print(Text.assemble(("bold", "bold"), HOSTILE), HOSTILE, style="yellow")
    with console.progress(2, HOSTILE) as advance:
        advance(2)
    left = re.sub(r"\x1b\[\??[\d;]*[mhlAK]|\r", "", shown.getvalue())
    assert "\x1b" in shown.getvalue()
    assert STEERING.search(left) is None
    assert "\u241b[2J" in left
