"""The README's blocks: configurations, commands and Python, to be run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def configurations() -> dict[str, str]:
    """Return the YAML blocks by the file name in their first line."""
    return {text.splitlines()[0].removeprefix("# "): text for text in blocks("yaml")}


def commands() -> list[str]:
    """Return what stands after a prompt in the console blocks."""
    return [line[2:] for text in blocks("console") for line in text.splitlines() if line.startswith("$ ")]
