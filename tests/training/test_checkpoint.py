from pathlib import Path

import pytest
import torch

from cellmill.errors import CheckpointError
from cellmill.training import checkpoint
from cellmill.training.engine import prepare_process


def write(folder: Path, steps: int, keep: int = 2) -> Path:
    prepare_process()
    tensors = {"weights/a": torch.full((3,), float(steps)), "weights/b": torch.arange(4.0)}
    return checkpoint.save(
        folder, tensors.items(), steps=steps, position={"epoch": 0}, config={"seed": 1}, plan={}, skipped={}, keep=keep
    )


def test_the_newest_complete_one_wins_and_old_ones_go(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    for steps in (5, 10, 15):
        write(tmp_path, steps)
    (tmp_path / "step-00000020").mkdir()  # a crash before the marker
    (tmp_path / "step-00000020" / "state-00000.safetensors").write_bytes(b"half")
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.marker.steps == 15
    assert sorted(path.name for path in tmp_path.glob("*/complete.json") for path in [path.parent]) == [
        "step-00000010",
        "step-00000015",
    ]
    with found.tensors() as tensors:
        assert len(tensors) == 2
        assert tensors["weights/a"].tolist() == [15.0] * 3
        with pytest.raises(CheckpointError, match="no tensor 'weights/c'"):
            tensors["weights/c"]


def test_what_a_crash_left_is_written_over(tmp_path: Path) -> None:
    left = tmp_path / "step-00000005"
    left.mkdir()
    (left / "state-00007.safetensors").write_bytes(b"of a run with more ranks")
    write(tmp_path, 5)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert list(found.marker.files) == ["state-00000.safetensors"]


def test_a_cut_file_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = write(tmp_path, 5)
    file = path / "state-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"state-00000\.safetensors is missing or cut") as error:
        checkpoint.newest(tmp_path)
    assert "Delete" in error.value.fix


def test_another_configuration_is_refused_by_its_key() -> None:
    then = {"seed": 1, "optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}, "workers": {"n": 2}}
    checkpoint.require_same({**then, "workers": {"n": 4}}, then, where="here", free=("workers",))
    with pytest.raises(CheckpointError, match=r"optimizer\.lr was 0\.1 when the run began and is 0\.2 now"):
        checkpoint.require_same(
            {**then, "optimizer": {"lr": 0.2, "betas": [0.9, 0.99]}}, then, where="here", free=("workers",)
        )
