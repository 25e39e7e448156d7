"""Genome assemblies: their names, their chromosomes, and how both are written."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, get_args

from cellmill.errors import ConfigError
from cellmill.genes.config import Organism

Assembly = Literal["hg38", "hg19", "mm10", "mm39"]
_SYNONYMS: dict[str, Assembly] = {
    "hg38": "hg38",
    "grch38": "hg38",
    "hg19": "hg19",
    "grch37": "hg19",
    "b37": "hg19",
    "hs37d5": "hg19",
    "mm10": "mm10",
    "grcm38": "mm10",
    "mm39": "mm39",
    "grcm39": "mm39",
}
_ORGANISM: dict[Assembly, Organism] = {"hg38": "human", "hg19": "human", "mm10": "mouse", "mm39": "mouse"}
# Lengths in bases of the autosomes by number, then X, Y and M (Genome Reference Consortium; hg19's M is UCSC's).
_LENGTHS: dict[Assembly, str] = {
    "hg38": "248956422 242193529 198295559 190214555 181538259 170805979 159345973 145138636 138394717 133797422 "
    "135086622 133275309 114364328 107043718 101991189 90338345 83257441 80373285 58617616 64444167 46709983 50818468 "
    "156040895 57227415 16569",
    "hg19": "249250621 243199373 198022430 191154276 180915260 171115067 159138663 146364022 141213431 135534747 "
    "135006516 133851895 115169878 107349540 102531392 90354753 81195210 78077248 59128983 63025520 48129895 51304566 "
    "155270560 59373566 16571",
    "mm10": "195471971 182113224 160039680 156508116 151834684 149736546 145441459 129401213 124595110 130694993 "
    "122082543 120129022 120421639 124902244 104043685 98207768 94987271 90702639 61431566 171031299 91744698 16299",
    "mm39": "195154279 181755017 159745316 156860686 151758149 149588044 144995196 130127694 124359700 130530862 "
    "121973369 120092757 120883175 125139656 104073951 98008968 95294699 90720763 61420004 169476592 91455967 16299",
}
_PATCH = re.compile(r"\.?p\d+$")
_CHROMOSOME = re.compile(r"^(?:chr)?0?(\d{1,2}|X|Y|MT?)$", re.IGNORECASE)
# GL000194.1 (Ensembl), chr14_GL000194v1_random (UCSC hg38), chr4_gl000194_random (UCSC hg19)
_CONTIG = re.compile(r"(?:^|_)((?:GL|J[HR]|K[INQVZ]|M[LU]|GK)\d{6,})(?:[.v](\d+))?(?:_|$)", re.IGNORECASE)


def assembly_of(name: str | None, where: str = "") -> Assembly:
    """Return the assembly that a name means: ``hg38`` for ``GRCh38.p14``.

    Raises
    ------
    ConfigError
        No name is given, or the assembly is not known.
    """
    known = _SYNONYMS.get(_PATCH.sub("", name.strip().lower())) if name else None
    if known is None:
        names = ", ".join(get_args(Assembly))
        what = f"The assembly {name!r} is not known." if name else "Peaks mean nothing without their genome assembly."
        raise ConfigError(what, where=where, fix=f"Set `assembly` to the one that the reads were mapped to: {names}.")
    return known


def organism_of(assembly: Assembly) -> Organism:
    """Return whose genome it is."""
    return _ORGANISM[assembly]


@lru_cache(maxsize=4)
def chromosome_lengths(assembly: Assembly) -> dict[str, int]:
    """Return the number of bases of each chromosome, ``chr1`` to ``chrM``; contigs are not among them."""
    lengths = [int(text) for text in _LENGTHS[assembly].split()]
    names = [*map(str, range(1, len(lengths) - 2)), "X", "Y", "M"]
    return {f"chr{name}": length for name, length in zip(names, lengths, strict=True)}


@lru_cache(maxsize=4096)
def chromosome(name: str, assembly: Assembly) -> str | None:
    """Return the one name of a chromosome or contig, None if the assembly has none that is written so.

    ``1`` and ``chr1`` are ``chr1``, ``MT`` is ``chrM``, and a contig goes by its accession: ``KI270728.1``.
    """
    if found := _CHROMOSOME.match(name):
        text = f"chr{found[1].upper().replace('MT', 'M')}"
        return text if text in chromosome_lengths(assembly) else None
    if found := _CONTIG.search(name):
        return f"{found[1].upper()}.{found[2] or 1}"
    return None


def prefixed_assembly(text: str) -> tuple[Assembly | None, str]:
    """Split ``GRCh38_chr1`` or ``hg38:chr1`` into the assembly and the rest; None where there is no such prefix."""
    head, separator, rest = text.replace(":", "_").partition("_")
    known = _SYNONYMS.get(_PATCH.sub("", head.lower())) if separator else None
    return (known, rest.lstrip("_")) if known else (None, text)
