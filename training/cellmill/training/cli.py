"""`cellmill pretrain`, `finetune`, `embed` and `annotate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cellmill.config import load_config
from cellmill.console import console, emit
from cellmill.errors import located

_Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key: --set model.d_model=128")
]
_Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest complete checkpoint of the run.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
_Input = Annotated[Path, typer.Argument(metavar="IN.h5ad", help="Cells with raw counts.")]
_Output = Annotated[Path, typer.Argument(metavar="OUT.h5ad", help="Where to write them.")]
_Model = Annotated[Path, typer.Option("--model", help="A model folder.")]
_Counts = Annotated[str, typer.Option(help="Where the counts are: auto, X, raw.X or layers/NAME.")]


def pretrain(
    config: Annotated[Path, typer.Argument(help="YAML: the atlas, the cells, the model, how long.")],
    settings: _Settings = None,
    resume: _Resume = False,
    as_json: _Json = False,
) -> None:
    """Train a model on an atlas: it learns to generate the expression of genes that it does not see."""
    from cellmill.training.config import PretrainConfig
    from cellmill.training.pretraining import pretrain as run_pretraining

    result = run_pretraining(load_config(PretrainConfig, config, settings or []), resume=resume)

    def render() -> None:
        parts = ", ".join(
            f"{name} {result.metrics[name]:.3f}" for name in ("gep", "gepc", "gen") if name in result.metrics
        )
        console.print(
            f"Loss {result.metrics['loss']:.3f} ({parts}) at {result.metrics['cells_per_second']:,.0f} cells/s"
        )
        console.print(f"Model: {result.model.path}", soft_wrap=True)

    emit(
        {
            "run": str(result.run.path),
            "model": str(result.model.path),
            "model_digest": result.model.digest,
            "metrics": result.metrics,
        },
        as_json,
        render,
    )


def finetune(
    config: Annotated[Path, typer.Argument(help="YAML: the pretrained model, the label, which cells.")],
    settings: _Settings = None,
    resume: _Resume = False,
    as_json: _Json = False,
) -> None:
    """Teach a model your cell types, and judge it on cells held out, beside simple methods."""
    from cellmill.training.config import FinetuneConfig
    from cellmill.training.finetuning import finetune as run_finetuning

    result = run_finetuning(load_config(FinetuneConfig, config, settings or []), resume=resume)

    def render() -> None:
        console.print(_scores(result.scores))
        for where, n in result.unlabelled.items():
            if n:
                console.print(f"{n:,} {where} cells have no label and were left out.")
        console.print(f"Model: {result.model.path}", soft_wrap=True)

    emit(
        {
            "run": str(result.run.path),
            "model": str(result.model.path),
            "model_digest": result.model.digest,
            "scores": result.scores,
            "unlabelled": result.unlabelled,
        },
        as_json,
        render,
    )


def embed(
    source: _Input,
    target: _Output,
    model: _Model,
    counts: _Counts = "auto",
    umap: Annotated[Path | None, typer.Option(help="Also draw a UMAP of the embeddings into this PNG.")] = None,
    color: Annotated[str | None, typer.Option(help="Column of obs to colour the UMAP by.")] = None,
    as_json: _Json = False,
) -> None:
    """Write cell embeddings into an h5ad, as obsm["X_cellmill"]."""
    from cellmill.training.evaluate import umap_figure
    from cellmill.training.h5ad import read_cells, write_cells
    from cellmill.training.inference import embed as run_embedding

    with located({"AnnData": source, "model": model}):
        result = run_embedding(read_cells(source), model, counts=counts)
    if umap is not None:
        umap_figure(result, color=color).savefig(umap, dpi=110, bbox_inches="tight")
    write_cells(result, target)
    payload = {"output": str(target), "umap": None if umap is None else str(umap), **result.uns["cellmill"]}
    emit(payload, as_json, lambda: _say(payload, "embedded"))


def annotate(source: _Input, target: _Output, model: _Model, counts: _Counts = "auto", as_json: _Json = False) -> None:
    """Write predicted cell types into an h5ad, as obs["cellmill_label"] and obs["cellmill_confidence"]."""
    from cellmill.training.h5ad import read_cells, write_cells
    from cellmill.training.inference import CONFIDENCE, LABEL
    from cellmill.training.inference import annotate as run_annotation

    with located({"AnnData": source, "model": model}):
        result = run_annotation(read_cells(source), model, counts=counts)
    write_cells(result, target)
    found = result.obs[LABEL].value_counts()
    payload = {
        "output": str(target),
        "labels": {str(name): int(n) for name, n in found.items() if n},
        "mean_confidence": float(result.obs[CONFIDENCE].mean()),
        **result.uns["cellmill"],
    }
    emit(payload, as_json, lambda: _say(payload, "annotated"))


def _say(payload: dict[str, Any], done: str) -> None:
    console.print(
        f"{payload['n_cells']:,} cells {done} (counts from {payload['counts_from']}; {payload['genes_used']:,} of the "
        f"model's {payload['genes_of_model']:,} genes, {payload['umis_used']:.1%} of the UMIs)"
    )
    for name, n in payload.get("labels", {}).items():
        console.print(f"  {n:>7,}  {name}")
    console.print(payload["output"], soft_wrap=True)


def _scores(scores: dict[str, dict[str, float]]) -> Any:
    from rich.table import Table

    first = next(iter(scores.values()))
    caption = f"{first['n_cells']:,} held-out cells, macro-F1 over {first['n_classes']} classes"
    table = Table("method", "accuracy", "macro-F1", caption=caption)
    for method, found in scores.items():
        table.add_row(method, f"{found['accuracy']:.3f}", f"{found['macro_f1']:.3f}")
    return table
