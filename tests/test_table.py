"""benchmark/table.py: trainings become rows that resume and merge, and rows become a report."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import autogan
from benchmark import table

TINY = dict(g_ch=4, d_ch=4, z_dim=6, g_batch=4, d_batch=4, n_critic=2, g_lr=1e-3, d_lr=1e-3, ema=0.9, eval_n=30)
SPACE = table.Space(cells=1, seeds=2, updates=4, up="nearest", flags=TINY)


@pytest.fixture
def words(tiny_data: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of the command for a space of twelve cells that takes a second."""
    monkeypatch.setitem(table.SPACES, "tiny", SPACE)
    work = ["--work", str(tiny_data["data_dir"]), "--results", str(tmp_path), "--device", "cpu"]
    return ["--space", "tiny", "--images", tiny_data["dataset"], *work]


def call(monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", ["table", *args])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "benchmark.table", *args])
    table.main()


def test_the_spaces_have_all_their_architectures() -> None:
    sizes = {name: len(set(space.vectors())) for name, space in table.SPACES.items()}
    assert sizes == {"stage1": 36, "two-cells-nearest": 288, "two-cells": 2592}
    for vector in table.SPACES["two-cells-nearest"].vectors():
        assert [row[2] for row in autogan.names_of(vector)] == ["nearest", "nearest"]


@pytest.mark.usefixtures("quick_compact")
def test_a_table_is_shared_and_resumed(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, "run", *words, "--seeds", "1")
    path = tmp_path / "table-tiny.jsonl"
    whole = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["vector"] for row in whole] == [autogan.text_of(v) for v in SPACE.vectors()]
    assert all([s["updates"] for s in row["scores"]] == [1, 2, 4] for row in whole)
    assert str(tmp_path) not in path.read_text()  # no folder of this machine
    results = {row["vector"]: (row["scores"], row["params"], row["macs"]) for row in whole}

    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]) + '{"space": "tiny", "vec')  # killed
    call(monkeypatch, "run", *words, "--seeds", "1", "--shard", "0/2")
    other = tmp_path / "table-tiny.0of2.jsonl"
    assert len(other.read_text().splitlines()) == 4  # the first, third, ... but for two that were there
    call(monkeypatch, "run", *words, "--seeds", "1")
    again = [json.loads(line) for file in (path, other) for line in file.read_text().splitlines()]
    assert len(again) == 12
    assert {row["vector"]: (row["scores"], row["params"], row["macs"]) for row in again} == results


@pytest.mark.usefixtures("quick_compact")
def test_a_training_is_that_of_the_script(tmp_path: Path) -> None:
    """With all three cells, nothing is resized or cut: autogan.py gets the same scores from the same seed."""
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(40) % 2)
    space, vector = table.Space(cells=3, seeds=1, updates=4, flags=TINY), (0, 1, 2, 1, 1, 1, 0, 1, 1, 0, 2, 1, 0, 3)
    job = table.job_of(space, tmp_path / "images.npz", tmp_path, "cpu")
    found = table.train(job, space, vector, seed=3)["scores"][-1]
    length = dict(phase="train", epoch_batches=2, train_epochs=4, eval_every=4, eval_after=0)
    about = dict(dataset=str(tmp_path / "images.npz"), data_dir=tmp_path, genotype=autogan.text_of(vector), device="cpu")
    autogan.main(space.args(3, **length, **about, runs_dir=tmp_path / "runs"))
    (made,) = tmp_path.glob("runs/*/result.json")
    last = json.loads(made.read_text())["last"]
    assert (last["step"], last["fid"], last["is"]) == (4, pytest.approx(found["fid"]), pytest.approx(found["is"]))
