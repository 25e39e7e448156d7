"""The demo's report: what was done, how well, and where the model stands beside simpler ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cellmill.lineage import Lineage
from cellmill.report import Figure, Section, Table, run_section, write_page
from cellmill.report.sections import lineage_text

MODEL, SCRATCH, LOGISTIC, MAJORITY = "fine-tuned", "from scratch", "logistic regression", "majority class"


def where_the_model_stands(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Say in one sentence or two how the fine-tuned model compares, whichever way it falls.

    Parameters
    ----------
    scores
        ``accuracy`` and ``macro_f1`` by method, among them the fine-tuned model.
    """
    ours = scores[MODEL]["accuracy"]
    sentences = [f"On a donor it never saw, the fine-tuned model names {ours:.1%} of the cells right."]
    sentences += [
        f"{_compare(ours - scores[name]['accuracy'])} {text} ({scores[name]['accuracy']:.1%})."
        for name, text in (
            (SCRATCH, "the same model without pretraining"),
            (LOGISTIC, "logistic regression on log counts"),
            (MAJORITY, "always naming the most frequent type"),
        )
        if name in scores
    ]
    if LOGISTIC in scores and ours <= scores[LOGISTIC]["accuracy"] + 0.005:
        sentences.append(
            "With two thousand cells a linear model is hard to beat: the transformer is here to show the line, "
            "which is made for pretraining on millions of cells."
        )
    return " ".join(sentences)


def _compare(difference: float) -> str:
    if abs(difference) < 0.005:
        return "That is on a par with"
    return f"That is {abs(difference) * 100:.1f} points {'above' if difference > 0 else 'below'}"


def scores_table(scores: Mapping[str, Mapping[str, float]]) -> Table:
    """Return accuracy and macro-F1 by method as a table."""
    rows = tuple((name, f"{score['accuracy']:.3f}", f"{score['macro_f1']:.3f}") for name, score in scores.items())
    return Table(header=("method", "accuracy", "macro-F1"), rows=rows, highlight=MODEL)


def write_demo_report(
    directory: Path,
    *,
    scores: Mapping[str, Mapping[str, float]],
    seconds: Mapping[str, float],
    served: str,
    apart: str,
    ingest_run: Path,
    lineage: Lineage,
) -> Path:
    """Write ``report.html`` into the demo's folder and return its path.

    Parameters
    ----------
    directory
        The demo's folder.
    scores
        Accuracy and macro-F1 by method on the held-out donor.
    seconds
        Wall time by step.
    served
        One sentence on how the served answers compare with the offline ones.
    apart
        One sentence on what training and held-out cells have in common.
    ingest_run
        Directory of the ingestion's run.
    lineage
        The walk back from the answer.
    """
    timing = tuple((name, f"{value:.0f} s") for name, value in seconds.items())
    summary = Section(
        title="Where the model stands",
        text=(where_the_model_stands(scores), apart, served),
        tables=(scores_table(scores), Table(header=("step", "wall time"), rows=(*timing, _total(seconds)))),
        figures=(Figure(path=directory / "plots" / "umap.png", caption="UMAP of the held-out donor's embeddings"),),
    )
    walk = Section(
        title="Lineage",
        text=("From the served answer back to the source file, by `cellmill lineage`.",),
        details={"The walk": lineage_text(lineage)},
    )
    sections = [
        summary,
        run_section(ingest_run, title="Ingestion: what happened to genes, UMIs and cells"),
        run_section(directory / "pretrain", title="Pretraining"),
        run_section(directory / "annotate", title="Fine-tuning: cell types"),
        walk,
    ]
    return write_page(
        directory / "report.html",
        "From an h5ad to an answered request",
        sections,
        lead="Human pancreas (Baron et al. 2016): 2,142 cells of four donors through every part of Cellmill.",
    )


def _total(seconds: Mapping[str, float]) -> tuple[str, str]:
    return ("all", f"{sum(seconds.values()):.0f} s")
