"""The blocks of the README and of the documentation: configurations, commands and Python, to be run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"


def blocks(language: str, document: Path = README) -> list[str]:
    """Return the fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def configurations(document: Path = README) -> dict[str, str]:
    """Return the YAML blocks by the file name in their first line, where a colon may follow it."""
    return {text.splitlines()[0].removeprefix("# ").partition(":")[0]: text for text in blocks("yaml", document)}


def commands(document: Path = README) -> list[str]:
    """Return what stands after a prompt in the console blocks."""
    return [line[2:] for text in blocks("console", document) for line in text.splitlines() if line.startswith("$ ")]
