from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from cellmill.config import Config
from cellmill.lineage import Lineage
from cellmill.report import Section, run_section, write_page
from cellmill.runs import Run


class Settings(Config):
    steps: int = 3


def test_a_page_needs_nothing_beside_it(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", "finetune", Settings())
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    run.figure("loss", figure)
    run.summary({"accuracy": 0.93456, "scores": {"ours": {"f1": 0.9}, "majority": {"f1": 0.1}}})
    run.lineage(Lineage(kind="source", name="a.h5ad", digest="f" * 64))
    page = write_page(tmp_path / "out" / "r.html", "T", [run_section(run.path), Section(title="<b>")])
    text = page.read_text()
    assert "data:image/png;base64," in text
    assert "0.9346" in text
    assert "majority" in text
    assert "a.h5ad" in text
    assert "&lt;b&gt;" in text
    assert "http" not in text.replace("http-equiv", "")
