"""The ways in which a gene's name is written: versions, prefixes, suffixes, dates."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ASSEMBLIES = {
    "hg19": "human",
    "hg38": "human",
    "grch37": "human",
    "grch38": "human",
    "mm9": "mouse",
    "mm10": "mouse",
    "mm39": "mouse",
    "grcm38": "mouse",
    "grcm39": "mouse",
}
# hg19_GAPDH, GRCh38_premrna_GAPDH, mm10___Gapdh, GRCh38-2020-A_GAPDH, GRCh38.p13_GAPDH
_PREFIX = re.compile(
    r"^(?:refdata[-\w]*?-)?(" + "|".join(_ASSEMBLIES) + r")(?:-\d{4}-[a-z])?(?:\.p\d+)?(?:_pre-?mrna)?_+(?=\S)",
    re.IGNORECASE,
)
_SEPARATOR = r"[_|:;/,\s]"
# ENSG00000141510, .17, .17_5 (lifted annotations), _PAR_Y, -1 (made unique), also beside a symbol
_ENSEMBL = re.compile(
    rf"(?:^|(?<={_SEPARATOR}))(ENS(?:[A-Z]{{3,4}})?G\d{{11}})(\.\d+(?:_\d+)?)?(_PAR_Y)?(-\d+)?(?=$|{_SEPARATOR})"
)
_UNIQUE = re.compile(r"^(.+)[-.]\d+$")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = "|".join(_MONTHS)
_DAY_MONTH = re.compile(rf"^(\d{{1,2}})-({_MONTH})$", re.IGNORECASE)
_MONTH_DAY = re.compile(rf"^({_MONTH})-(\d{{1,2}})$", re.IGNORECASE)
_ISO = re.compile(r"^\d{4}-(\d{2})-(\d{2})(?:[T ]00:00:00)?$")
_SLASHES = re.compile(r"^(\d{1,2})/(\d{1,2})/(?:\d{4}|\d{2})$")
# The stems of symbols that a spreadsheet reads as a month and a day.
_STEMS = {"Mar": ("MARCH", "MARC", "MAR"), "Sep": ("SEPT", "SEP"), "Dec": ("DEC",)}
_SPIKE_IN = re.compile(r"^ERCC[-_]?\d{5}$", re.IGNORECASE)
# Names of whole viruses, as they are added to a reference, and of their genes with the virus before.
_VIRAL = re.compile(
    r"^(?:(?:SARS[-_]?CoV(?:[-_]?2)?|(?:2019[-_])?nCoV(?:[-_]2019)?|SCoV2|COVID[-_]?19|HCoV[-_]?\w+|MERS[-_]?CoV)(?:$|[-_.])"
    r"|(?:NC_045512|MN908947|HIV[-_]?[12]|EBV|HCMV|KSHV|HHV[-_]?\d\w?|HSV[-_]?[12]|VZV|HBV|HCV|HDV|HPV\d*|HTLV[-_]?\d|"
    r"ZIKV|DENV\d?|RSV|IAV|IBV|AAV\d*)(?:$|[-_.])"
    r"|CMV[-_.])",
    re.IGNORECASE,
)
_ORF = re.compile(r"^C(?:\d+|X|Y)ORF\d", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Spelling:
    """A name taken apart.

    Parameters
    ----------
    organism
        What the prefix says, or None.
    ensembl
        The Ensembl gene id in it, without version, or None.
    par_y
        Whether the id is marked as chrY's copy of a pseudo-autosomal gene.
    symbol
        What is left, perhaps "".
    """

    organism: str | None
    ensembl: str | None
    par_y: bool
    symbol: str


def take_apart(name: str) -> Spelling:
    """Split a name into assembly prefix, Ensembl id and symbol."""
    text = name.strip()
    organism = None
    prefix = _PREFIX.match(text)
    if prefix is not None:
        organism = _ASSEMBLIES[prefix[1].lower()]
        text = text[prefix.end() :]
    found = _ENSEMBL.search(text) if "ENS" in text else None
    if found is None:
        return Spelling(organism, None, False, text)
    rest = (text[: found.start()] + text[found.end() :]).strip("_|:;/, \t")
    return Spelling(organism, found[1], found[3] is not None, "" if rest == "gene" else rest)


def without_unique_suffix(name: str) -> str | None:
    """Return ``TBCE`` for ``TBCE-1`` or ``TBCE.1``, the marks of tools that make names unique; else None."""
    found = _UNIQUE.match(name)
    return found[1] if found is not None else None


def date_candidates(name: str) -> tuple[str, ...]:
    """Return the symbols that a spreadsheet turns into this date, () if it is none.

    ``1-Mar`` may have been MARCH1, MARC1 or MAR1, or March1 of a mouse: it is for the caller to see which of them mean
    a gene. Of ``3/1/2021`` nobody can tell which number is the month.
    """
    if found := _SLASHES.match(name):
        first, second = int(found[1]), int(found[2])
        return _of_date(first, second) + (() if first == second else _of_date(second, first))
    if found := _DAY_MONTH.match(name):
        return _of_date(_MONTHS.index(found[2].capitalize()) + 1, int(found[1]))
    if found := _MONTH_DAY.match(name):
        return _of_date(_MONTHS.index(found[1].capitalize()) + 1, int(found[2]))
    if found := _ISO.match(name):
        return _of_date(int(found[1]), int(found[2]))
    return ()


def _of_date(month: int, day: int) -> tuple[str, ...]:
    stems = _STEMS.get(_MONTHS[month - 1], ()) if 1 <= month <= 12 else ()
    return tuple(f"{spelling}{day}" for stem in stems for spelling in (stem, stem.capitalize()))


def control_kind(name: str) -> str | None:
    """Return ``spike_in`` or ``viral`` for names that are spelt like such features, else None."""
    if _SPIKE_IN.match(name):
        return "spike_in"
    if _VIRAL.match(name):
        return "viral"
    return None


def undotted(name: str) -> tuple[str, ...]:
    """Return what R's ``make.names`` may have been given to return `name`: ``HLA-A`` for ``HLA.A``, else ()."""
    text = name[1:] if re.match(r"^X\d", name) else name
    text = text.replace(".", "-")
    return (text,) if text != name else ()


def orf_spellings(name: str) -> tuple[str, ...]:
    """Return the two spellings of an open reading frame's symbol, ``C11orf95`` and ``C11ORF95``, else ()."""
    if not _ORF.match(name):
        return ()
    upper = name.upper()
    return (upper.replace("ORF", "orf"), upper)
