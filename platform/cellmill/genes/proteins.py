"""Proteins measured by antibodies: what is measured, without the marks of the panel that measured it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from cellmill.genes.config import Organism, ProteinConfig
from cellmill.genes.feature import Feature
from cellmill.genes.mapping import GeneMapping
from cellmill.genes.status import CODE, Status

_TOTALSEQ = r"total[-_ ]?seq[-_ ]?[A-D]?"
_TAG = r"(?:ADT|AB|PROT|PROTEIN|ANTIBODY|CITE|CITE[-_]?SEQ|HTO)"
_HOST = r"(?:human|mouse|rat|hu|ms|rt|hums|humsrt|msrt)"
# What a panel, a kit or a pipeline puts before and after the antigen; taken off again and again until none is left.
_BEFORE = (
    re.compile(rf"^{_TAG}[-_:. ]+(?=\S)", re.IGNORECASE),
    re.compile(rf"^anti[-_ ](?:{_HOST}(?:[-_/ ]+{_HOST})*[-_ ]+)?(?=\S)", re.IGNORECASE),
    re.compile(r"^(?:Hu|Ms|Rt|HuMs|HuMsRt|MsRt)\.(?=\S)"),
)
_AFTER = (
    re.compile(rf"[-_. ]*\(?{_TOTALSEQ}\)?$", re.IGNORECASE),
    re.compile(rf"[-_. ]{_TAG}$", re.IGNORECASE),
    re.compile(r"[-_. ][ACGT]{10,}$"),  # the antibody's barcode
    re.compile(r"\s*\([^()]+\)$"),  # the clone, or another name
)
_ID = re.compile(r"^protein:[a-z]+:(.+)$")  # of this atlas, or another
_BD = re.compile(r"^([^|:]+)(?::[^|]*)?\|.*pAbO", re.IGNORECASE)  # CD3:UCHT1|CD3E|AHS0231|pAbO
_CLONE = re.compile(r"^(?:Hu|Ms|Rt|HuMs|HuMsRt|MsRt)\.([^_]+)_[^_]+$")  # Hu.CD3_UCHT1
_SEPARATORS = re.compile(r"[\s_.\-]+")
_ISOTYPE = re.compile(r"isotype|(?:^|[-_. ])iso[-_. ]?(?:ctrl|control)", re.IGNORECASE)
_IG = r"Ig[GMADE]\d?[a-c]?"
# Immunoglobulins with a host, a subclass or the word control; IgM, IgD or IgG alone are antigens.
_CONTROL = re.compile(
    rf"^(?:(?:mouse|rat|(?:armenian[-_. ]|syrian[-_. ])?hamster|goat|rabbit)[-_. ]*{_IG}"
    rf"|IgG[1-4][a-c]?|IgG2[a-c]"
    rf"|{_IG}(?=.*(?:ctrl|control)))"
    r"(?:[-_., ]*(?:k|κ|kappa|l|λ|lambda|fc|ctrl|control|isotype))*$",
    re.IGNORECASE,
)


def has_antibody_tag(name: str) -> bool:
    """Return whether a name bears a mark that only antibodies have: ``CD3_TotalSeqB``, ``adt_CD3``."""
    text = name.strip()
    return bool(
        _AFTER[0].search(text) or _AFTER[1].search(text) or _BEFORE[0].match(text) or _BD.match(text) or _ID.match(text)
    )


def antigen_of(name: str) -> str:
    """Return what an antibody binds, as the panel names it.

    Taken off are kits and pipelines (``_TotalSeqB``, ``adt_``, ``_PROT``), ``anti-human``, the antibody's barcode,
    and what stands in parentheses at the end (the clone: ``CD3 (UCHT1)``). A number at the end stays: ``CD3-1`` may be
    the first of two clones, but ``PD-1`` and ``TIM-3`` are not. Synonyms stay apart (``PD-1``, ``CD279``), since
    isoforms of one gene, such as CD45RA and CD45RO, are different antigens.
    """
    text = name.strip()
    for pattern in (_ID, _BD, _CLONE):
        if found := pattern.match(text):
            text = found[1].strip()
    before = ""
    while text != before:
        before = text
        for pattern in (*_BEFORE, *_AFTER):
            shorter = pattern.sub("", text).strip()
            text = shorter or text
    return _SEPARATORS.sub("-", text).strip("-")


def is_isotype_control(name: str) -> bool:
    """Return whether an antibody binds nothing, and is there to measure what sticks."""
    return bool(_ISOTYPE.search(name)) or bool(_CONTROL.match(antigen_of(name)))


def map_proteins(names: Sequence[str], *, organism: Organism, config: ProteinConfig | None = None) -> GeneMapping:
    """Map antibodies to proteins: ``CD3_TotalSeqB`` and ``CD3 (UCHT1)`` are ``protein:human:CD3``.

    The identity is the organism and the antigen, see `antigen_of`, whatever its case and separators; the symbol keeps
    them. Isotype controls have no place unless they are asked for, and are not counted as a loss.

    Parameters
    ----------
    names
        One a column.
    organism
        That was measured.
    config
        What happens to several antibodies of one protein, and to isotype controls.
    """
    settings = config or ProteinConfig()
    codes = np.full(len(names), CODE[Status.MATCHED], np.uint8)
    target = np.full(len(names), -1, np.int32)
    features: list[Feature] = []
    place: dict[str, int] = {}
    copies: dict[str, int] = {}
    for i, name in enumerate(names):
        control = is_isotype_control(name)
        antigen = antigen_of(name)
        if control and settings.controls == "drop":
            codes[i] = CODE[Status.ISOTYPE_CONTROL]
            continue
        if not antigen or antigen.isdigit():
            codes[i] = CODE[Status.UNKNOWN]
            continue
        key = f"protein:{organism}:{antigen.upper()}"
        if key in place and settings.duplicates == "keep":
            copies[key] = copies.get(key, 1) + 1
            antigen, key = f"{antigen}#{copies[key]}", f"{key}#{copies[key]}"
        if key not in place:
            place[key] = len(features)
            features.append(Feature(key, antigen, "protein", organism, "antibodies"))
        target[i] = place[key]
        if antigen != name:
            codes[i] = CODE[Status.ALIAS]
    return GeneMapping(
        organism=organism,
        release="antibodies",
        names=tuple(names),
        features=tuple(features),
        target=target,
        codes=codes,
        conflicts=np.zeros(len(names), bool),
        hint="The names are numbers: say where the names of the antibodies are." if names and not features else "",
        modality="protein",
    )
